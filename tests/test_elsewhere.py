"""Demonstrations, deployments and annotations from files give the same as the simulator and the teacher here."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy
from small import LINE, ROOT, SMALL, TOY, differences, keep_replays, metrics, own, report, result, run_method, words

import gbrl_d4pg
from common import UserError, elsewhere, envs, files, rollouts, snapshots
from common.envs import EnvSpec

other = sys.modules[envs.load_class(f"{ROOT}/examples/deploy_elsewhere.py:Args").__module__]


def run_elsewhere(method, run_dir, demo_dir, **flags):
    """Run a method, bringing what it asks for each time it stops; returns its folder and what it asked for."""
    asked = []
    while True:
        try:
            run_method(method, run_dir, demo_dir, **(TOY | flags))
            assert not (run_dir / "waiting.json").exists()
            return run_dir, asked
        except elsewhere.FilesNeeded as stop:
            assert f"--resume {run_dir}" in str(stop)
            request = files.load_json(run_dir / "waiting.json", "request")
            asked.append((request["for"], request["cycle"]))
            assert len(asked) < 10
            other.main(other.Args(run_dir, TOY["teacher"]))


def test_what_comes_from_elsewhere_gives_the_run_that_a_simulator_gives(alone, tmp_path, demo_dir):
    there, asked = run_elsewhere("ta:1", tmp_path / "run", demo_dir, deploy="elsewhere", annotate="elsewhere")
    assert asked == [("episodes", 1), ("annotations", 1), ("episodes", 2), ("annotations", 2)]
    assert differences(result(there), result(alone("ta:1"))) == []
    with pytest.raises(UserError, match="waits for nothing: --resume it"):
        other.main(other.Args(there, TOY["teacher"]))


def test_demonstrations_in_the_replay_are_annotated_here_and_counted(tmp_path, demo_dir):
    here = run_method("ta:1", tmp_path / "here", demo_dir, **TOY, demos_in_replay=True)
    there, _ = run_elsewhere("ta:1", tmp_path / "run", demo_dir, annotate="elsewhere", demos_in_replay=True)
    assert differences(result(there), result(here)) == []


def test_a_share_of_the_states_is_annotated_and_counted(tmp_path, demo_dir):
    there, _ = run_elsewhere("ta_qf", tmp_path / "run", demo_dir, annotate="elsewhere", annotate_fraction=0.25)
    counts = []
    for cycle in (1, 2):  # a state without an answer gets the deployed policy's action
        folder = there / f"cycle_000{cycle}"
        episodes = rollouts.unpack(files.load_arrays(folder / "batch.npz", "batch"))
        obs = torch.from_numpy(np.concatenate([episode.obs[:-1] for episode in episodes]))
        asked = files.load_arrays(folder / "states.npz", "states")["index"]
        counts.append(len(asked))
        assert len(asked) == round(len(obs) / 4)
        expected = snapshots.load(there / f"cycle_000{cycle - 1}" / "snapshot.pt", torch.device("cpu")).action(obs)
        expected[asked] = toy.Pusher(None, None).action(obs)[asked]
        column = files.load_arrays(folder / "annotated.npz", "annotations")["teacher_action"]
        np.testing.assert_allclose(column, expected, atol=1e-5)
    assert report(there)["teacher_queries"]["states_annotated"] == sum(counts)
    (there / "cycle_0001" / "annotated.npz").unlink()  # of a past cycle, whose policy isn't at hand any more
    with pytest.raises(UserError, match=r"cycle_0001.annotated\.npz can't be read"):
        run_elsewhere("ta_qf", there, demo_dir, annotate="elsewhere", annotate_fraction=0.25)


def test_answers_that_do_not_fit_are_refused(tmp_path, demo_dir):
    def go_on():
        run_method("ta_qf", tmp_path / "run", demo_dir, annotate="elsewhere", **TOY)

    with pytest.raises(elsewhere.FilesNeeded):
        go_on()
    count, folder = files.load_json(tmp_path / "run/waiting.json", "request")["states"], tmp_path / "run/cycle_0001"
    bad = [("action", (count, 2), 0, r"shape \(\d+, 2\)"), ("actions", (count, 1), 0, "no such array")]
    bad += [("action", (count, 1), value, "others") for value in (1.5, np.nan)]
    for name, shape, value, got in bad:
        files.save_arrays(folder / "annotations.npz", **{name: np.full(shape, value)})
        with pytest.raises(UserError, match=f"from -1 to 1, one row per state; it has {got}"):
            go_on()
    files.save_arrays(folder / "annotations.npz", action=np.zeros((count, 1)))
    with pytest.raises(elsewhere.FilesNeeded, match="cycle_0002"):
        go_on()


# ---- files of episodes


@pytest.fixture
def recorded():
    """Three noisy episodes of the toy task's teacher, with the actions that it meant."""
    act = toy.Pusher(None, None).action
    episodes = rollouts.run_block(LINE, act, 0.3, (5,), range(3))
    return [e._asdict() | {"intended_action": act(torch.from_numpy(e.obs[:-1])).numpy()} for e in episodes]


def test_recorded_demonstrations_are_cloned_to_what_was_meant(recorded, tmp_path, demo_dir, monkeypatch):
    elsewhere.write(tmp_path / "mine.npz", recorded)
    replays = keep_replays(gbrl_d4pg, monkeypatch)
    flags = TOY | {"teacher": str(tmp_path / "mine.npz"), "demo_episodes": 3}
    run_dir = run_method("bc", tmp_path / "run", demo_dir, **flags)
    batch = replays[1].sample(64, torch.Generator().manual_seed(0))  # of demonstrations; the first is the growing batch
    meant = toy.Pusher(None, None).action(batch["obs"])
    torch.testing.assert_close(batch["teacher_action"], meant, atol=1e-5, rtol=0)
    returns = [episode["reward"].sum(dtype=np.float64) for episode in recorded]
    assert report(run_dir)["teacher"]["return"]["mean"] == pytest.approx(np.mean(returns))
    for method in ("ta_qf", "tg:1"):
        with pytest.raises(UserError, match="it gives demonstrations, and this method needs action"):
            run_method(method, tmp_path / "no", demo_dir, **flags)


@pytest.mark.parametrize(
    ("name", "where", "value", "sentence"),
    [
        ("obs", 7, np.nan, "obs of episode 1, step 7"),
        ("obs", 20, np.inf, "obs of episode 1, step 20"),
        ("action", 3, 1.5, "action of episode 1, step 3"),
        ("discount", 19, -1, "discount of episode 1, step 19"),
        ("obs", None, {"position": 0}, "isn't plain numbers of one shape"),
        ("obs", None, np.zeros((20, 2)), r"episode 1 has obs of shape \(20, 2\)"),
        ("reward", None, None, "episode 1 lacks reward"),
    ],
)
def test_a_bad_episode_is_named(name, where, value, sentence, recorded, tmp_path):
    if where is not None:
        recorded[1][name][where] = value
    elif value is not None:
        recorded[1][name] = value
    else:
        del recorded[1][name]
    with pytest.raises(UserError, match=sentence):
        elsewhere.write(tmp_path / "bad.npz", recorded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("i", (0, 1))
def test_all_episodes_or_none_have_actions_before_noise(i, recorded, tmp_path):
    del recorded[i]["intended_action"]
    with pytest.raises(UserError, match=f"episode {i} lacks intended_action"):
        elsewhere.write(tmp_path / "bad.npz", recorded)


def test_a_file_that_does_not_fit_the_task_is_refused(recorded, tmp_path):
    path = tmp_path / "mine.npz"
    elsewhere.write(path, recorded)
    with pytest.raises(UserError, match="mine ends at 10"):
        elsewhere.read(path, EnvSpec("mine", 2, 1, 10))
    with pytest.raises(UserError, match=r"pendulum-swingup has \(3,\) and \(1,\)"):
        elsewhere.main(elsewhere.Args(path, env_id="pendulum-swingup"))
    arrays = files.load_arrays(path, "recorded episodes")
    files.save_arrays(path, **{name: values.astype(np.float64) for name, values in arrays.items()})  # NumPy's own type
    episodes, intended = elsewhere.read(path, envs.spec(LINE))
    assert all(map(np.array_equal, episodes[1], [recorded[1][name] for name in episodes[1]._fields]))
    assert np.array_equal(intended, np.concatenate([episode["intended_action"] for episode in recorded]))
    for content, sentence in (
        (arrays | {"reward": arrays["reward"][:, None]}, "must be one number a step"),
        ({name: values[:0] for name, values in arrays.items()}, "no episodes"),
        ({"obs": arrays["obs"]}, "lacks the"),
        (arrays | {"reward": np.array(["a", "b"])}, "isn't plain numbers"),
        (arrays | {"length": arrays["length"][:, None]}, "don't fit each other"),
    ):
        files.save_arrays(path, **content)
        with pytest.raises(UserError, match=f"mine.npz.*{sentence}"):
            elsewhere.main(elsewhere.Args(path))


# ---- whole runs


def test_a_whole_episode_more_than_asked_is_refused_and_fewer_are_told_and_made_up_for(tmp_path, demo_dir, capsys):
    """The first deployment brings one episode of two: its updates are half, the second is asked for three."""
    flags = {"env_id": LINE, "teacher": "none", "deploy": "elsewhere", "actor_steps": 80, "learner_steps": 60}
    flags["keep_every"] = 2
    run_dir = tmp_path / "run"

    def asked(steps, cycle, bring):
        with pytest.raises(elsewhere.FilesNeeded, match=rf"cycle_000{cycle}.* for {steps} steps"):
            run_method("bc", run_dir, demo_dir, **flags)
        request = {"for": "episodes", "cycle": cycle, "folder": f"cycle_000{cycle}", "steps": steps, "sigma": 0.3}
        assert files.load_json(run_dir / "waiting.json", "request") == request
        args = files.load_json(run_dir / "args.json", "arguments")["args"]
        other.deploy(run_dir / f"cycle_000{cycle}", args, cycle, bring, 0)

    asked(40, 1, bring=60)
    with pytest.raises(UserError, match="has 60 steps, where 40 were asked for: leave out whole episodes"):
        run_method("bc", run_dir, demo_dir, **flags)
    (run_dir / "cycle_0001" / "episodes.npz").unlink()
    asked(40, 1, bring=20)
    asked(60, 2, bring=60)
    assert files.load_torch(run_dir / "checkpoint.pt", "checkpoint")["step"] == 15  # it waits with all that it learned
    run_method("bc", run_dir, demo_dir, **flags)
    assert "has 20 of 40 steps" in capsys.readouterr().out
    deployed = {line["cycle"]: line["learner_step"] for line in metrics(run_dir) if "deploy/episodic_return" in line}
    assert deployed == {1: 0, 2: 15}  # a quarter of the steps, a quarter of the updates
    assert metrics(run_dir)[-1]["learner_step"] == 60


CLINIC = """
class Clinic:
    observation_space, action_space, max_episode_steps = Point.observation_space, Point.action_space, 20
"""


def test_without_a_simulator_deployments_speak(recorded, tmp_path, demo_dir):
    elsewhere.write(tmp_path / "mine.npz", recorded)
    flags = {"env_id": own(tmp_path, "Clinic", CLINIC), "teacher": str(tmp_path / "mine.npz"), "actor_steps": 80}
    with pytest.raises(UserError, match="can't be simulated: use --deploy elsewhere"):
        run_method("bc", tmp_path / "run", demo_dir, **flags)
    for cycle in (1, 2):
        with pytest.raises(elsewhere.FilesNeeded):
            run_method("bc", tmp_path / "run", demo_dir, deploy="elsewhere", **flags)
        folder = tmp_path / "run" / f"cycle_000{cycle}"
        policy = torch.jit.load(folder / "policy.torchscript")
        assert policy(torch.zeros(4, 2)).shape == (4, 1)
        elsewhere.write(folder / "episodes.npz", [e | {"reward": e["reward"] / cycle} for e in recorded[:2]])
    content = report(run_method("bc", tmp_path / "run", demo_dir, deploy="elsewhere", **flags))
    assert content["returns"].startswith("deployments") and content["clone"] is None and content["dip"] is None
    expected = np.mean([episode["reward"].sum() / 2 for episode in recorded[:2]])
    assert content["final"]["return"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert content["falls"]["count"] == 1  # of the second deployment
    assert [cycle["learner_step"] for cycle in content["cycles"]] == [30, 61]
    assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 10_000


def test_the_readmes_commands_are_the_loop(recorded, tmp_path):
    for name in ("common", "examples", "gbrl_teacher_action.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for i, episode in enumerate(recorded[:2], start=1):
        np.savez(tmp_path / f"episode{i}.npz", **episode)
    text, statuses = (ROOT / "README.md").read_text().partition("## Without a simulator")[2], []
    small = {name: value for name, value in (SMALL | TOY).items() if name != "teacher"}
    more = {"--run-dir": words(small), "examples/deploy_elsewhere.py": ["--teacher", TOY["teacher"]]}
    for line in text.split("```")[1].splitlines()[1:]:
        command = shlex.split(line, comments=True)
        command += [word for place, added in more.items() if place in command for word in added]
        done = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        statuses.append(done.returncode)
    assert statuses == [0, 75, 0, 75, 0, 75], done.stderr
    request = files.load_json(tmp_path / "runs" / "real" / "waiting.json", "request")
    assert (request["for"], request["cycle"]) == ("episodes", 2)
