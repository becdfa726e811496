"""Damaged and lost files: each is found, and what its message says to do leads to the same end."""

import random
import re
import shutil
import stat
import tempfile

import numpy as np
import pytest
import torch
from small import CPU, TOY, differences, equal, make_args, result

from common import UserError, envs, files, report, teachers
from common.run import Run

SPEC = envs.spec(TOY["env_id"])


def flipped(data, bit):
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def damage(path, how):
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:  # a flipped bit is in an array, not in the zip format between them
        path.write_bytes(data[: len(data) // 2] if how == "cut" else flipped(data, len(data) * 2))


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
def test_a_damaged_file_of_a_run(names, lost, stopped, alone, tmp_path, demo_dir, monkeypatch):
    run_dir, said, expected = shutil.copytree(stopped, tmp_path / "run"), "", result(alone("ta:1"))
    monkeypatch.setattr(report, "draw_learning_curve", lambda run_dir: None)
    module, args = make_args("ta:1", run_dir, demo_dir, **TOY)
    for name in names.split():
        damage(run_dir / name, "lost" if lost else "cut" if ".json" in name else "flipped")  # JSON is only parsed
    for _ in range(3):
        try:
            module.main(args)
            break
        except UserError as error:  # do as it says
            said += str(error)
            for name in [name for name in names.split() if name in str(error)] or names.split():
                if files.REMAKE in str(error) or "begins again" in str(error):
                    (run_dir / name).unlink()
                else:
                    shutil.copy(stopped / name, run_dir / name)
    sentence = FILES[names][not lost]
    assert (said == "") if sentence is None else (str(run_dir) in said and re.search(sentence, said))
    if "snapshot.pt" in names:  # of a past cycle, which is not made again
        shutil.copy(stopped / "cycle_0001" / "snapshot.pt", run_dir / "cycle_0001" / "snapshot.pt")
    assert differences(result(run_dir), expected) == []


# ---- demonstrations


def test_demonstrations_are_cached_under_all_that_they_depend_on(alone, tmp_path, monkeypatch):
    teacher = teachers.load(str(alone("ta:1") / "cycle_0002" / "snapshot.pt"), SPEC, "demonstrations", CPU)
    folder = tmp_path / "demos"

    def demos(n=2, sigma=0.3):
        flags = TOY | {"demo_episodes": n, "demo_sigma": sigma}
        module, args = make_args("bc", tempfile.mkdtemp(dir=tmp_path), folder, **flags)
        with Run(args, "bc", SPEC, teacher, module.__file__) as run:
            return run.demonstrations()[0]

    two = demos()
    (path,) = folder.glob("*")
    before = path.stat().st_mtime_ns
    assert equal(demos(), two) and path.stat().st_mtime_ns == before
    assert equal(demos(1), two[:1]) and equal(demos(3)[:2], two)
    assert not equal(demos(sigma=0.300001), two) and len(list(folder.glob("*"))) == 4
    for how in ("cut", "flipped"):
        damage(path, how)
        with pytest.raises(UserError, match=f"{path} is damaged .*; {files.REMAKE}"):
            demos()
        path.unlink()
        assert equal(demos(), two)
    assert [name.split()[0] for name in envs.versions(TOY["env_id"])[:2]] == ["file", "dm-control"]
    monkeypatch.setattr(envs, "versions", lambda env_id: ["file another"])
    assert equal(demos(), two) and len(list(folder.glob("*"))) == 5
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(UserError, match=r"demos can.t be written .File exists.: choose another --demo-dir"):
        demos(3)


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
    ".pt": (files.save_torch, files.load_torch, {"x": torch.arange(20), "more": {"n": 1, "text": "a"}}),
    ".npz": (lambda path, x: files.save_arrays(path, **x), files.load_arrays, {"x": np.arange(20), "y": np.zeros(3)}),
    ".json": (files.save_json, files.load_json, {"x": [1, 2.5, None], "more": {"text": "a"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_found_and_every_flipped_bit_of_a_pt_file_is_found_or_changes_nothing(kind, tmp_path):
    save, read, content = KINDS[kind]
    path = tmp_path / f"file{kind}"

    def outcome(data):
        """The content in words, or None where `read` says that the file is damaged."""
        path.write_bytes(data)
        try:
            return repr(read(path, "file"))
        except UserError as error:
            assert str(path) in str(error)
            return None

    save(path, content)
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)  # as the user's umask has it
    good = path.read_bytes()
    assert outcome(good) == repr(content)
    for size in range(len(good.rstrip(b"\n"))):  # JSON without its last line break is whole
        assert outcome(good[:size]) is None, size
    if kind == ".pt":
        bits = random.Random(0).sample(range(len(good) * 8), 400)
        assert {outcome(flipped(good, bit)) for bit in bits} == {None, repr(content)}


def test_what_is_no_dict_is_damaged(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.json is damaged .it is a list, not a dict.; restore it"):
        files.load_json(tmp_path / "list.json", "file")
