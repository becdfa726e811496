"""Damaged and lost files: each is found, and what its message says to do leads to the same end."""

import errno
import fcntl
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from small import CPU, ROOT, TOY, differences, equal, make_args, result

from common import UserError, envs, files, report, teachers
from common.workers import Workers

SPEC = envs.spec(TOY["env_id"])
VERSION = f"file{envs.digest(TOY['env_id'])}"


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


DAMAGES = {
    "lost": lambda data: None,
    "flipped": lambda data: flipped(data, len(data) * 2),  # in an array, not in the zip format between them
    "cut": lambda data: data[: len(data) // 2],
}


def damage(path, how):
    if (data := DAMAGES[how](path.read_bytes())) is None:
        path.unlink()
    else:
        path.write_bytes(data)


# ---- the files of a run


RESTORE = "restore it from a copy, or start again in a new folder"
BEGINS = r"checkpoint\.pt is damaged .*restore it, or delete it: the run then begins again, to the same end"
# File: what is said when it is lost, and when it is damaged; None where it isn't missed.
FILES = {
    "args.json": ("neither empty nor a run", RESTORE),
    "versions.json": ("versions.json can't be read", RESTORE),
    "metrics.jsonl": (RESTORE, RESTORE),
    "teacher.json": (None, files.REMAKE),
    "checkpoint.pt": (None, BEGINS),
    "cycle_0001/evaluation.json": (None, files.REMAKE),
    "cycle_0001/snapshot.pt": (None, None),
    "cycle_0001/snapshot.pt cycle_0001/evaluation.json": ("snapshot.pt can't be read", files.REMAKE),
    "cycle_0001/batch.npz": ("batch.npz can't be read", RESTORE),
    "cycle_0002/batch.npz": (None, files.REMAKE),
}


@pytest.mark.parametrize("lost", (True, False))
@pytest.mark.parametrize("names", FILES)
def test_a_damaged_file_of_a_run(names, lost, stopped, alone, tmp_path, demo_dir, monkeypatch, capsys):
    how = "lost" if lost else "cut" if ".json" in names else "flipped"  # a JSON file is only parsed
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
    said, sentence = "".join(capsys.readouterr()), FILES[names][not lost]
    if sentence is None:
        assert not any(str(path) in said for path in paths)
    else:
        assert re.search(sentence, said) and (str(tmp_path / "run") in said)
    if "snapshot.pt" in names:  # of a past cycle, which is not made again
        shutil.copy(stopped / "cycle_0001" / "snapshot.pt", tmp_path / "run" / "cycle_0001" / "snapshot.pt")
    assert differences(result(tmp_path / "run"), expected) == []


# ---- demonstrations


@pytest.fixture
def demos(alone, tmp_path):
    """A function that asks for the demonstrations of a policy on the toy task."""
    teacher = teachers.load(str(alone("ta:1") / "cycle_0002" / "snapshot.pt"), SPEC, "demonstrations", CPU)

    def ask(n=2, sigma=0.3):
        return teachers.demonstrations(teacher, SPEC, n, sigma, tmp_path / "demos", Workers(SPEC, 0))

    return ask


def test_demonstrations_are_cached_under_all_that_they_depend_on_and_a_damaged_file_is_made_again(
    demos, tmp_path, monkeypatch, capfd
):
    two = demos()
    (path,) = tmp_path.glob("demos/*")
    assert path.name.startswith("Point-") and path.name.endswith(f"-sigma0.3-{VERSION}-2.npz")
    before = path.stat().st_mtime_ns
    assert equal(demos(), two) and path.stat().st_mtime_ns == before
    assert equal(demos(1), two[:1]) and equal(demos(3)[:2], two)
    assert not equal(demos(sigma=0.300001), two)  # a file of its own
    assert len(list(tmp_path.glob("demos/*"))) == 4
    for how in DAMAGES:
        damage(path, how)
        assert equal(demos(), two) and (str(path) in capfd.readouterr().err) == (how != "lost")
    monkeypatch.setattr(envs, "versions", lambda env_id: ["file another"])
    assert equal(demos(), two) and len(list(tmp_path.glob("demos/*"))) == 5
    shutil.rmtree(tmp_path / "demos")
    (tmp_path / "demos").touch()
    with pytest.raises(UserError, match=r"demos can.t be written .File exists.: choose another --demo-dir"):
        demos(3)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(UserError, match=r"\.lock can't be locked .Function not implemented.: choose .* a file system"):
        files.lock(tmp_path / ".lock")


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
        with pytest.raises(UserError, match=f"{name} is damaged "):
            read(tmp_path / name, "file")
    assert not (tmp_path / "ran").exists()


KINDS = {
    ".pt": (files.save_torch, files.load_torch, {"x": torch.arange(20.0), "more": {"n": 1, "text": "a"}}),
    ".npz": (lambda path, x: files.save_arrays(path, **x), files.load_arrays, {"x": np.arange(20), "y": np.zeros(3)}),
    ".json": (files.save_json, files.load_json, {"x": [1, 2.5, None], "more": {"text": "a"}}),
}


def outcome(read, path, data):
    """What `read` makes of `data`: its content in words, or None where it says that the file is damaged."""
    path.write_bytes(data)
    try:
        return repr(read(path, "file"))
    except UserError as error:
        assert str(path) in str(error)
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_found(kind, tmp_path):
    save, read, content = KINDS[kind]
    path = tmp_path / f"file{kind}"
    save(path, content)
    good = path.read_bytes()
    assert outcome(read, path, good) == repr(content)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # for whoever may read its folder
    for size in range(len(good.rstrip(b"\n"))):  # JSON without its last line break is whole
        assert outcome(read, path, good[:size]) is None, size


def test_every_flipped_bit_of_a_pt_file_is_found_or_changes_nothing(tmp_path):
    save, read, content = KINDS[".pt"]
    path = tmp_path / "file.pt"
    save(path, content)
    good = path.read_bytes()
    bits = random.Random(0).sample(range(len(good) * 8), 400)
    outcomes = [outcome(read, path, flipped(good, bit)) for bit in bits]
    assert set(outcomes) <= {None, repr(content)}
    with zipfile.ZipFile(path) as archive:  # in what the archive holds, each is found
        (part,) = [part for part in archive.infolist() if part.filename.endswith("/data/0")]
    start = good.index(np.arange(20.0, dtype="f").tobytes())
    for bit in range(start * 8, (start + part.file_size) * 8):
        assert outcome(read, path, flipped(good, bit)) is None, bit


def test_what_is_no_dict_is_damaged(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.json is damaged .it is a list, not a dict.; restore it"):
        files.load_json(tmp_path / "list.json", "file")


def test_a_lock_is_held_against_other_processes_until_it_is_closed(tmp_path):
    code = f"from pathlib import Path; from common import files; files.lock(Path({str(tmp_path / 'l')!r}))"

    def taken():
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 or "in use by another process" in done.stderr
        return done.returncode != 0

    held = files.lock(tmp_path / "l")
    assert taken()
    held.release()
    assert not taken()
