"""A run that is killed at any moment goes on to the same end, bit for bit; a damaged file is never read silently."""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small import ROWS, SMALL, differences, kill_somewhere, phase, result, run_row, script

from common import UserError, envs, evaluate, files, rollouts, run, teachers

TASK = "cartpole-balance"
KILLS = 20


def args_of(row, run_dir, demo_dir, **flags):
    name, own = ROWS[row]
    return script(name).Args(run_dir=str(run_dir), demo_dir=str(demo_dir), env_id=TASK, **(SMALL | own | flags))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, demo_dir):
    """The run that is left alone."""
    return run_row("ta:1", tmp_path_factory.mktemp("alone") / "run", demo_dir, env_id=TASK)


def in_child(row, args):
    """Start a run in a forked process, which needs no new imports and shares nothing that it writes."""
    child = multiprocessing.get_context("fork").Process(target=script(ROWS[row][0]).main, args=(args,))
    child.start()
    return child


def test_twenty_kills_and_the_same_end(alone, tmp_path, demo_dir, capfd):
    seed = random.randrange(10**6)
    print(f"kill seed {seed}")
    rng, phases = random.Random(seed), []
    args = args_of("ta:1", tmp_path / "run", demo_dir, checkpoint_every=1)
    while len(phases) < KILLS:
        child = in_child("ta:1", args)
        if not kill_somewhere(child, tmp_path / "run", rng):
            pytest.fail(f"ended by itself, status {child.exitcode}, after {len(phases)} kills")
        phases.append(phase(tmp_path / "run"))
    script("gbrl_teacher_action").main(args)
    assert len(phases) == KILLS and len(set(phases)) >= 3, phases
    assert differences(result(tmp_path / "run"), result(alone)) == [], f"kill seed {seed}"


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_saves_says_how_to_go_on_and_exits_with_its_number(number, alone, tmp_path, demo_dir):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | {"bc_steps": 100_000, "num_workers": 1}).items()]
    command = [sys.executable, "gbrl_d4pg.py", *flags, f"--env-id={TASK}", f"--demo-dir={demo_dir}"]
    child = subprocess.Popen([*command, f"--run-dir={tmp_path}/run"], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoint_previous.pt").exists():  # it is cloning, and will be for minutes
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    child.send_signal(number)
    _, message = child.communicate(timeout=10)
    assert child.returncode == 128 + number
    assert f"--resume {tmp_path}/run" in message and "Traceback" not in message
    assert files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["step"] > 0
    again = subprocess.run([*command[:2], "--resume", f"{tmp_path}/run", "--seed", "3"], capture_output=True, text=True)
    assert again.returncode == 1 and "--seed 3 can't be changed" in again.stderr and again.stderr.count("\n") == 1


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_resume_refuses_other_flags_and_takes_free_ones(alone, tmp_path, demo_dir):
    folder = copy_of(alone, tmp_path)
    args = args_of("ta:1", folder, demo_dir)
    for flag, value in {"seed": 2, "gamma": 0.9, "decay_rate": 5.0, "scale": 0.5}.items():
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {value} can't be changed"):
            script("gbrl_teacher_action").main(dataclasses.replace(args, **{flag: value}))
    with pytest.raises(UserError, match=r"a run of gbrl_teacher_action\.py"):
        run.saved_args(script("gbrl_d4pg").Args, folder)
    script("gbrl_teacher_action").main(dataclasses.replace(args, num_workers=1, checkpoint_every=1))
    assert differences(result(folder), result(alone)) == []


def test_two_processes_never_share_a_folder(alone, tmp_path, demo_dir):
    args = args_of("bc", tmp_path / "run", demo_dir, bc_steps=100_000)
    child = in_child("bc", args)
    while not (tmp_path / "run" / "args.json").exists():
        time.sleep(0.02)
    with pytest.raises(UserError, match="in use by another process"):
        script("gbrl_d4pg").main(args)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    saved = run.saved_args(script("gbrl_d4pg").Args, tmp_path / "run")  # the dead process keeps no lock
    with pytest.raises(UserError, match="can't be changed"):
        script("gbrl_d4pg").main(dataclasses.replace(saved, run_dir=str(tmp_path / "run"), seed=9))


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path, demo_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.time, "time", lambda: 1_700_000_000.5)
    env, module = envs.spec(TASK), script("gbrl_d4pg")
    args = dataclasses.replace(args_of("bc", "unused", demo_dir), run_dir=None)
    keepers = [run.Run(args, args.resolved(env), env, module.METRICS, module.__file__) for _ in range(2)]
    assert [keeper.dir.name for keeper in keepers] == [f"{TASK}__bc__1__170000000{i}" for i in range(2)]
    for keeper in keepers:
        with keeper:
            pass


def test_runs_that_need_the_same_demonstrations_at_once_make_them_once(tmp_path):
    def read(name, seconds):
        def made(_):
            (tmp_path / f"{name} made them").touch()
            time.sleep(seconds)

        teacher = teachers.load("expert", envs.spec(TASK), "demonstrations", torch.device("cpu"))
        episodes = teachers.demonstrations(
            teacher, envs.spec(TASK), 2, 0.0, tmp_path / "demos", rollouts.Workers(0), made
        )
        np.save(tmp_path / f"{name}.npy", np.concatenate([episode.obs for episode in episodes]))

    def start(name, seconds):
        child = multiprocessing.get_context("fork").Process(target=read, args=(name, seconds))
        child.start()
        return child

    killed = start("killed", 1000)
    while not (tmp_path / "killed made them").exists():
        assert killed.is_alive()
        time.sleep(0.02)
    children = [start("first", 0), start("second", 0)]
    time.sleep(0.5)
    assert not list(tmp_path.glob("*.npy")), "somebody read what is still being made"
    killed.kill()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(list(tmp_path.glob("* made them"))) == 2, "the killed one, and one of the other two"
    assert np.array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))


DAMAGES = {
    "missing": lambda data, rng: None,
    "empty": lambda data, rng: b"",
    "flipped": lambda data, rng: flip(data, rng.randrange(len(data) * 8)),
    **{f"cut {i}": lambda data, rng: data[: rng.randrange(1, len(data) - 1)] for i in range(10)},
}


def flip(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def damaged(path, rng):
    """Damage a file in each way in turn; yields the kind of damage."""
    good = path.read_bytes()
    for kind, damage in DAMAGES.items():
        if (data := damage(good, rng)) is None:
            path.unlink()
        else:
            path.write_bytes(data)
        yield kind
    path.write_bytes(good)


@pytest.mark.parametrize("name", ("checkpoint.pt", "cycle_0001/batch.npz", "args.json", "metrics.csv"))
def test_a_damaged_file_is_named_or_the_good_one_before_is_used(name, alone, tmp_path, demo_dir, capfd):
    folder = copy_of(alone, tmp_path)
    args = args_of("ta:1", folder, demo_dir)
    resolved = args.resolved(script("gbrl_teacher_action").envs.spec(TASK))
    for kind in damaged(folder / name, random.Random(0)):
        if name == "checkpoint.pt":  # the one before is used, and said
            keys = script("gbrl_teacher_action").METRICS + args.own_metrics
            path = script("gbrl_teacher_action").__file__
            with run.Run(args, resolved, script("gbrl_d4pg").envs.spec(TASK), keys, path) as keeper:
                assert keeper._saved["phase"] == "cycle 2"
            assert ("checkpoint_previous.pt" in capfd.readouterr().err) == (kind != "missing")
            (folder / "metrics.csv").write_bytes((alone / "metrics.csv").read_bytes())
            continue
        with pytest.raises(UserError, match=str(folder if kind == "missing" else folder / name)):
            script("gbrl_teacher_action").main(args)


def test_a_damaged_policy_is_named_whoever_reads_it(alone, tmp_path):
    folder = copy_of(alone, tmp_path)
    path = folder / "cycle_0002" / "snapshot.pt"
    for _ in damaged(path, random.Random(1)):
        with pytest.raises(UserError, match=str(path)):
            teachers.load(str(path), envs.spec(TASK), "action_gradients", torch.device("cpu"))
        with pytest.raises(UserError, match=str(path)):
            evaluate.main(evaluate.Args(path))


def test_damaged_demonstrations_are_said_and_made_again_bit_for_bit(tmp_path, capfd):
    env, workers = envs.spec(TASK), rollouts.Workers(0)
    teacher = teachers.load("expert", env, "demonstrations", torch.device("cpu"))
    good = teachers.demonstrations(teacher, env, 1, 0.0, tmp_path, workers)
    (path,) = tmp_path.glob("*.npz")
    for kind in damaged(path, random.Random(2)):
        again = teachers.demonstrations(teacher, env, 1, 0.0, tmp_path, workers)
        assert all(np.array_equal(x, y) for a, b in zip(good, again, strict=True) for x, y in zip(a, b, strict=True))
        assert (str(path) in capfd.readouterr().err) == (kind != "missing")


def test_files_of_another_run_are_refused(alone, tmp_path, demo_dir):
    other = run_row("ta:1", tmp_path / "other", demo_dir, env_id=TASK, seed=5)
    folder = copy_of(alone, tmp_path)
    shutil.copy(other / "cycle_0001/batch.npz", folder / "cycle_0001/batch.npz")
    with pytest.raises(UserError, match="belongs to another run"):
        script("gbrl_teacher_action").main(args_of("ta:1", folder, demo_dir))
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        shutil.copy(other / name, folder / name)
    with pytest.raises(UserError, match="belongs to another run"):
        script("gbrl_teacher_action").main(args_of("ta:1", folder, demo_dir))


class Malicious:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_file_can_run_code(tmp_path):
    torch.save({"x": Malicious(tmp_path / "ran")}, tmp_path / "raw.pt")
    files._write_sealed(tmp_path / "bad.pt", (tmp_path / "raw.pt").read_bytes())
    np.save(tmp_path / "raw.npy", np.array([Malicious(tmp_path / "ran")], dtype=object))
    files.save_arrays(tmp_path / "bad.npz", obs=np.array([Malicious(tmp_path / "ran")], dtype=object))
    with pytest.raises(UserError, match=r"bad\.pt is damaged"):
        files.load_torch(tmp_path / "bad.pt", "checkpoint")
    with pytest.raises(UserError, match=r"bad\.npz is damaged"):
        files.load_arrays(tmp_path / "bad.npz", "batch")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_stops_being_finite_is_named_and_never_saved(tmp_path, demo_dir, monkeypatch):
    module = script("gbrl_d4pg")
    honest = module.critic_loss

    def exploding(critic, *rest):
        loss = honest(critic, *rest)
        exploding.calls += 1
        return loss * float("nan") if exploding.calls == 20 + 17 else loss  # 20 are critic evaluation

    exploding.calls = 0
    monkeypatch.setattr(module, "critic_loss", exploding)
    with pytest.raises(UserError, match=r"cycle 1 stopped being finite at its step 16.*checkpoint\.pt"):
        run_row("bc", tmp_path / "run", demo_dir, env_id=TASK)
    state = files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")
    assert all(value.isfinite().all() for value in state["state"]["policy"].values())
    assert (state["phase"], state["step"]) == ("cycle 1", 15)


def test_an_observation_that_is_not_finite_is_named_and_stops_the_run(tmp_path, demo_dir, monkeypatch):
    honest = envs.Env.step

    def broken(env, action, obs):
        answer = honest(env, action, obs)
        if (broken.run / "cycle_0000" / "snapshot.pt").exists():  # the clone was scored
            obs[0] = np.nan
        return answer

    broken.run = tmp_path / "run"
    monkeypatch.setattr(envs.Env, "step", broken)
    sentence = r"(?s)cartpole-balance returned an observation that isn't finite: .*nan.*checkpoint\.pt"
    with pytest.raises(UserError, match=sentence):
        run_row("bc", tmp_path / "run", demo_dir, env_id=TASK)
    assert files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["phase"] == "cycle 1"


def test_a_lost_worker_changes_nothing(tmp_path, capfd):
    policy = script("gbrl_d4pg").Policy(5, 1)
    here = rollouts.Workers(0).collect(TASK, policy, 0.3, (7,), range(20))
    workers = rollouts.Workers(1)
    pending = workers.submit(TASK, policy, 0.3, (7,), range(10))
    time.sleep(1.0)
    (worker,) = workers._pool._pool_manager.worker_manager.workers.values()
    os.kill(worker.pid, signal.SIGKILL)  # busy, or still starting
    there = pending.result()
    (worker,) = workers._pool._pool_manager.worker_manager.workers.values()
    os.kill(worker.pid, signal.SIGKILL)  # idle
    time.sleep(0.5)
    there += workers.collect(TASK, policy, 0.3, (7,), range(10, 20))
    workers.close()
    assert all(np.array_equal(x, y) for a, b in zip(here, there, strict=True) for x, y in zip(a, b, strict=True))


def test_a_block_that_always_loses_its_worker_is_an_error():
    workers = rollouts.Workers(1, block_timeout=0.05)  # no block is that quick
    with pytest.raises(UserError, match="lost its worker 3 times"):
        workers.collect(TASK, script("gbrl_d4pg").Policy(5, 1), 0.0, (7,), range(10))
    workers.close()
