"""Scoring and filming of policy snapshots, through the command line that users type."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small import CPU, ROOT, TOY, run_method

import gbrl_d4pg
from common import UserError, envs, evaluate, files, rollouts, snapshots

TASK = "cartpole-swingup"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder laid out like a run's, with the snapshots of two cycles."""
    folder, spec = tmp_path_factory.mktemp("run"), envs.spec(TASK)
    for cycle in (1, 2):
        torch.manual_seed(cycle)
        agent = gbrl_d4pg.Agent(gbrl_d4pg.Args(), spec, CPU)
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
    snapshot = snapshots.load(run_folder / "cycle_0002" / "snapshot.pt", CPU)
    episodes = rollouts.run_block(TASK, snapshot.action, 0.0, (evaluate.STREAM, 5), range(3))
    returns = [episode.episodic_return for episode in episodes]
    assert len(set(returns)) == 3  # the start states differ
    low, high = f"{min(returns):.2f}", f"{max(returns):.2f}"
    assert f"mean {np.mean(returns):.2f}, 95 % bootstrap interval {low} to {high}" in result.stdout
    assert f"min {low}, max {high}" in result.stdout and snapshot.sha256 in result.stdout
    assert "seed: 2" in result.stdout  # the metadata of the run's last cycle


def test_a_bad_path_is_one_sentence(run_folder, tmp_path):
    content = files.load_torch(run_folder / "cycle_0001" / "snapshot.pt", "snapshot")
    content["critic"]["head.bias"][3] = np.nan
    files.save_torch(tmp_path / "nan.pt", content)
    for name, word in (("none.pt", "read"), ("nan.pt", "its weights aren't finite")):
        with pytest.raises(UserError, match=word):
            evaluate.main(evaluate.Args((tmp_path / name,)))
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
    mine, sentence = alone("bc") / "cycle_0002" / "snapshot.pt", "isn't a task of dm_control's, and only those are"
    with pytest.raises(UserError, match=sentence):
        run_method("bc", tmp_path / "run", tmp_path, capture_video=True, **TOY)
    assert not (tmp_path / "run").exists()
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
        first = evaluate.score(snapshots.load(path, CPU), 1, 5, num_workers=0)[0]
        assert f"return {first:.2f}, of {path}" in result.stdout
    with Image.open(output) as film:
        assert film.size == (2 * evaluate.WIDTH, evaluate.HEIGHT)
        frames = set()
        for index in range(0, film.n_frames, 10):
            film.seek(index)
            frames.add(film.convert("RGB").tobytes())
    assert len(frames) > 5


def test_a_run_films_its_kept_policies_and_goes_on_after_an_interrupted_film(tmp_path, demo_dir, monkeypatch):
    films, interrupted = [], iter([True, False, True])

    def film(paths, output):
        films.append((*paths, output))
        if next(interrupted, False):
            raise KeyboardInterrupt
        output.write_bytes(b"GIF")

    monkeypatch.setattr(evaluate, "check_can_film", lambda env_id: None)
    monkeypatch.setattr(evaluate, "film", film)
    flags = TOY | {"num_cycles": 3, "keep_every": 2, "eval_episodes": 0, "capture_video": True, "checkpoint_every": 999}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_method("bc", tmp_path / "run", demo_dir, **flags)
        cycle = files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["cycle"]
        assert films[-1][0].parent.name == f"cycle_{cycle - 1:04d}"  # its cycle has ended, and all of it is saved
    run_dir = run_method("bc", tmp_path / "run", demo_dir, **flags)
    filmed = [run_dir / f"cycle_000{cycle}" for cycle in (0, 0, 2, 2, 3)]
    assert films == [(folder / "snapshot.pt", folder / "video.gif") for folder in filmed]
