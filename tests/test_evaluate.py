"""Scoring and filming of policy snapshots, through the command line that users type."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small import ROOT, TOY, run_method

import gbrl_d4pg
from common import UserError, envs, evaluate, files, rollouts, snapshots

TASK = "cartpole-swingup"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder laid out like a run's, with the snapshots of two cycles."""
    folder, spec = tmp_path_factory.mktemp("run"), envs.spec(TASK)
    for cycle in (1, 2):
        torch.manual_seed(cycle)
        agent = gbrl_d4pg.Agent(gbrl_d4pg.Args(), spec, torch.device("cpu"))
        torch.nn.init.normal_(agent.policy.head.weight)
        path = folder / f"cycle_{cycle:04d}" / "snapshot.pt"
        snapshots.save(path, spec, agent.policy, agent.critic, {"seed": cycle})
    return folder


def command(*arguments):
    line = [sys.executable, "-m", "common.evaluate", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_printed_score_is_that_of_the_rollouts(run_folder):
    result = command(run_folder, "--episodes", 3, "--seed", 5, "--num-workers", 0)
    assert result.returncode == 0, result.stderr
    snapshot = snapshots.load(run_folder / "cycle_0002" / "snapshot.pt", torch.device("cpu"))
    episodes = rollouts.run_block(TASK, snapshot.action, 0.0, (evaluate.STREAM, 5), range(3))
    returns = [episode.episodic_return for episode in episodes]
    assert len(set(returns)) == 3  # the start states differ
    assert (
        f"mean {np.mean(returns):.2f}, 95 % bootstrap interval {min(returns):.2f} to {max(returns):.2f}"
        in result.stdout
    )
    assert f"min {min(returns):.2f}, max {max(returns):.2f}" in result.stdout and snapshot.sha256 in result.stdout
    assert "seed: 2" in result.stdout  # the metadata of the run's last cycle


def test_a_bad_path_is_one_sentence(run_folder, tmp_path):
    files.save_torch(tmp_path / "list.pt", [torch.zeros(1)])
    content = files.load_torch(run_folder / "cycle_0001" / "snapshot.pt", "snapshot")
    content["critic"]["head.bias"][3] = np.nan
    files.save_torch(tmp_path / "nan.pt", content)
    for path, word in (
        (tmp_path / "none.pt", "read"),
        (tmp_path / "nan.pt", "its weights aren't finite"),
        (tmp_path / "list.pt", "a list, .* FILE.py:Class"),
    ):
        with pytest.raises(UserError, match=word):
            evaluate.main(evaluate.Args((path,)))
    result = command(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_video_that_cannot_be_is_one_sentence_and_a_run_says_it_at_its_start(
    run_folder, alone, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match=r"ends in \.gif"):
        evaluate.film([run_folder / "cycle_0001" / "snapshot.pt"], tmp_path / "film.avi", 0)
    monkeypatch.setenv("MUJOCO_GL", "no-such-renderer")
    with pytest.raises(UserError, match="libosmesa6"):
        evaluate.check_can_film(TASK)
    sentence = "isn't a task of dm_control's, and only those are drawn"
    with pytest.raises(UserError, match=sentence):
        run_method("bc", tmp_path / "run", tmp_path, capture_video=True, **TOY)
    assert not (tmp_path / "run").exists()
    mine = alone("bc") / "cycle_0002" / "snapshot.pt"
    with pytest.raises(UserError, match=sentence):
        evaluate.film([mine], tmp_path / "film.gif", 0)
    evaluate.main(evaluate.Args((mine,), episodes=2, num_workers=0))  # but it can be scored


def test_the_film_shows_the_first_scored_episodes_side_by_side(run_folder, tmp_path):
    paths, output = [run_folder / f"cycle_000{k}" / "snapshot.pt" for k in (1, 2)], tmp_path / "film.gif"
    result = command(*paths, "--episodes", 0, "--seed", 5, "--video", output)
    if "no video" in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    for path in paths:
        first = evaluate.score(snapshots.load(path, torch.device("cpu")), 1, 5, num_workers=0)[0]
        assert f"return {first:.2f}, of {path}" in result.stdout
    with Image.open(output) as film:
        assert film.size == (2 * evaluate.WIDTH, evaluate.HEIGHT)
        frames = set()
        for index in range(0, film.n_frames, 10):
            film.seek(index)
            frames.add(film.convert("RGB").tobytes())
    assert len(frames) > 5
    assert output.stat().st_size < 4e6


def test_a_run_films_its_kept_policies(tmp_path, demo_dir, monkeypatch):
    try:
        evaluate.check_can_film(TASK)
    except UserError as error:
        pytest.skip(str(error))
    films, honest = [], evaluate.film
    monkeypatch.setattr(evaluate, "film", lambda *paths: films.append(paths))
    flags = {"env_id": "pendulum-swingup", "actor_steps": 3_000, "num_cycles": 3, "keep_every": 2, "eval_episodes": 0}
    run_dir = run_method("bc", tmp_path / "run", demo_dir, capture_video=True, report_episodes=1, **flags)
    folders = [run_dir / f"cycle_{cycle:04d}" for cycle in (0, 2, 3)]
    assert films == [([folder / "snapshot.pt"], folder / "video.gif") for folder in folders]
    honest(*films[0])
    assert (folders[0] / "video.gif").stat().st_size > 10_000
