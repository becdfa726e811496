"""Damaged and lost files: each is found, and what its message says to do leads to the same end."""

import errno
import multiprocessing
import os
import random
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from small import TOY, differences, equal, make_args, own, result

from common import UserError, envs, evaluate, files, foreign, report, teachers
from common.workers import Workers

CPU = torch.device("cpu")
SPEC = envs.spec(TOY["env_id"])


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


DAMAGES = {
    "lost": lambda data: None,
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: flipped(data, len(data) * 4),
}


def damage(path, how):
    if (data := DAMAGES[how](path.read_bytes())) is None:
        path.unlink()
    else:
        path.write_bytes(data)


# ---- the files of a run


RESTORE = "restore it from a copy, or start again in a new folder"
BEGINS = r"checkpoint\.pt is damaged .*restore it, or delete it: the run then begins again, to the same end"
SNAPSHOT = r"(?s)snapshot\.pt (is damaged|can't be read).*policies "  # before the last lines
# File: what is said when it is lost, and when it is damaged; None where it isn't missed.
FILES = {
    "args.json": ("neither empty nor a run", RESTORE),
    "versions.json": ("versions.json can't be read", RESTORE),
    "metrics.jsonl": (RESTORE, RESTORE),
    "teacher.json": (None, files.REMAKE),
    "checkpoint.pt": (None, BEGINS),
    "cycle_0000/evaluation.json": (None, files.REMAKE),
    "cycle_0001/evaluation.json": (None, files.REMAKE),
    "cycle_0001/snapshot.pt": (SNAPSHOT, SNAPSHOT),
    "cycle_0001/snapshot.pt cycle_0001/evaluation.json": ("snapshot.pt can't be read", files.REMAKE),
    "cycle_0001/batch.npz": ("lost its batch of cycle 1; start again in a new folder", RESTORE),
    "cycle_0002/batch.npz": (None, "batch.npz is damaged .*deployed again"),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("names", FILES)
def test_a_damaged_file_of_a_run(names, how, stopped, alone, tmp_path, demo_dir, monkeypatch, capsys):
    expected = result(alone("ta:1"))
    monkeypatch.setattr(report, "draw_learning_curve", lambda run_dir: None)
    module, args = make_args("ta:1", shutil.copytree(stopped, tmp_path / "run"), demo_dir, **TOY)
    paths = [tmp_path / "run" / name for name in names.split()]
    for path in paths:
        damage(path, how)
    for _ in range(3):
        try:
            module.main(args)
            break
        except UserError as error:  # do as it says
            print(error)
            for path in [path for path in paths if str(path) in str(error)] or paths:
                if files.REMAKE in str(error) or "begins again" in str(error):
                    path.unlink()
                else:
                    shutil.copy(stopped / path.relative_to(tmp_path / "run"), path)
    said, sentence = "".join(capsys.readouterr()), FILES[names][how != "lost"]
    if sentence is None:
        assert not any(path.name in said for path in paths)
    else:
        assert re.search(sentence, said) and (str(tmp_path / "run") in said)
    if "snapshot.pt" in names:  # of a past cycle, which is not made again
        shutil.copy(stopped / "cycle_0001" / "snapshot.pt", tmp_path / "run" / "cycle_0001" / "snapshot.pt")
    assert differences(result(tmp_path / "run"), expected) == []


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_policy_is_named_whoever_reads_it(how, alone, tmp_path):
    path = Path(shutil.copy(alone("ta:1") / "cycle_0002" / "snapshot.pt", tmp_path))
    damage(path, how)
    with pytest.raises(UserError, match=str(path)):
        teachers.load(str(path), SPEC, "action_gradients", CPU)
    with pytest.raises(UserError, match=str(path)):
        evaluate.main(evaluate.Args(path))


# ---- demonstrations

TEACHERS = """
class Learned(Pusher):
    def action(self, obs):
        return float(open(f"{HERE}/weight").read()) * super().action(obs)


class Waits(Pusher):  # until two ask for its demonstrations
    def action(self, obs):
        if len(obs) == 10:
            open(f"{HERE}/made by {os.getpid()}", "w").close()
            while len(glob.glob(f"{HERE}/started *")) < 2:
                time.sleep(0.01)
        return super().action(obs)
"""


def load(name, folder):
    """A teacher, and a function that asks for its demonstrations."""
    teacher = teachers.load(own(folder, name, TEACHERS), SPEC, "demonstrations", CPU)
    return teacher, lambda n=2: teachers.demonstrations(teacher, SPEC, n, 0.3, folder / "demos", Workers(SPEC, 0))


def test_demonstrations_are_cached_extended_and_where_they_do_not_fit_said_and_made_again(tmp_path, capfd):
    teacher, demos = load("Pusher", tmp_path)
    two = demos()
    (path,) = tmp_path.glob("demos/*.npz")
    before = path.stat().st_mtime_ns
    assert equal(demos(1), two[:1]) and path.stat().st_mtime_ns == before
    assert equal(demos(3)[:2], two)
    good = files.load_arrays(path, "demonstrations")
    spoilt = {"obs": good["obs"] + 1}
    origin = str(good["origin"])
    for word in ("toy.py:Point", teacher.sha256, "sigma 0.3", f"file {foreign.digest(TOY['env_id'])}"):
        assert word in origin
        files.save_arrays(path, **(good | spoilt | {"origin": np.array(origin.replace(word, f"{word}9"))}))
        assert equal(demos(), two) and f"{path} are of" in capfd.readouterr().err
    for how in DAMAGES:
        damage(path, how)
        assert equal(demos(), two) and (str(path) in capfd.readouterr().err) == (how != "lost")


def test_demonstrations_are_made_again_when_their_teachers_weights_have_changed(tmp_path, capfd):
    (tmp_path / "weight").write_text("0.5")
    before = load("Learned", tmp_path)[1]()
    assert equal(before, load("Learned", tmp_path)[1]()) and capfd.readouterr().err == ""
    (tmp_path / "weight").write_text("0.6")
    after = load("Learned", tmp_path)[1]()
    assert "aren't what their teacher does now. They are made again" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "demos")
    assert not equal(before, after) and equal(after, load("Learned", tmp_path)[1]())


def test_runs_that_need_the_same_demonstrations_at_once_make_them_once(tmp_path):
    def ask(name):
        (tmp_path / f"started {name}").touch()
        episodes = load("Waits", tmp_path)[1]()
        np.save(tmp_path / f"{name}.npy", np.concatenate([episode.obs for episode in episodes]))

    children = [multiprocessing.get_context("fork").Process(target=ask, args=(name,)) for name in ("first", "second")]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(list(tmp_path.glob("made by *"))) == 1
    assert np.array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))


def test_demonstrations_in_somebody_elses_folder_are_read_not_extended(tmp_path, monkeypatch):
    demos = load("Pusher", tmp_path)[1]
    two = demos()

    def refuse(path, wait):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(files, "lock", refuse)
    assert equal(demos(), two)
    with pytest.raises(UserError, match=r"\.npz can't be written .Permission denied.; put that right"):
        demos(3)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with pytest.raises(UserError, match=r"\.lock can't be locked .Function not implemented.: choose a file system"):
        load("Pusher", tmp_path)[1]()


# ---- any file


class Malicious:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_file_can_run_code(tmp_path):
    bad = Malicious(tmp_path / "ran")
    files.save_torch(tmp_path / "bad.pt", {"x": bad})
    files.save_arrays(tmp_path / "bad.npz", obs=np.array([bad], dtype=object))
    for name, read in (("bad.pt", files.load_torch), ("bad.npz", files.load_arrays)):
        with pytest.raises(UserError, match=f"{name} is damaged .it isn't plain"):
            read(tmp_path / name, "file")
    assert not (tmp_path / "ran").exists()


KINDS = {
    ".pt": (files.save_torch, files.load_torch, {"x": torch.arange(20.0), "more": {"n": 1, "text": "a"}}),
    ".npz": (lambda path, x: files.save_arrays(path, **x), files.load_arrays, {"x": np.arange(20), "y": np.zeros(3)}),
    ".json": (files.save_json, files.load_json, {"x": [1, 2.5, None], "more": {"text": "a"}}),
}


def test_a_runs_files_are_for_whoever_may_read_its_folder(tmp_path):
    files.save_json(tmp_path / "a.json", {})
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_and_every_cut_is_found_or_changes_nothing(kind, tmp_path):
    save, read, content = KINDS[kind]
    path = tmp_path / f"file{kind}"
    save(path, content)
    good = path.read_bytes()
    bits = random.Random(0).sample(range(len(good) * 8), 400)
    directory = good.rfind(b"PK\x01\x02")  # its CRCs don't cover the zip format's own, which is small
    bits += range(directory * 8, len(good) * 8) if kind == ".npz" else []
    found = 0
    for data in [flipped(good, bit) for bit in bits] + [good[:size] for size in range(len(good))]:
        path.write_bytes(data)
        try:
            assert repr(read(path, "file")) == repr(content)
        except UserError:
            found += 1
    assert found > 0.9 * (len(bits) + len(good))
