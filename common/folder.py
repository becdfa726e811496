"""A run's folder: who may use it, what was run, and the files of each cycle."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, elsewhere, files, launch
from common.rollouts import Episode, pack, unpack

PACKAGES = ("torch", "numpy", "dm-control", "mujoco")


def versions() -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return packages | {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}


def code(script: Path) -> dict[str, str]:
    """SHA-256 of the script and of each file of `common/`."""
    paths = [script, *sorted(Path(__file__).parent.glob("*.py"))]
    names = [path.name if path is script else f"common/{path.name}" for path in paths]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(names, paths, strict=True)}


class Folder:
    """The folder of one run, locked for this process."""

    def __init__(self, args: Any, row: str, teacher_sha256: str | None, script: Path) -> None:
        """Make the folder of a new run, or open that of the run that `args.run_dir` holds.

        Raises:
            UserError: it can't be written, is in use, or holds another run.
        """
        self._args, self.script = args, script
        self._unsaved: list[tuple[int, list[Episode]]] = []
        self._stored: tuple[int, dict[int, list[Episode]]] = (0, {})
        self.path = self._open(row)
        self.is_new = not (self.path / "args.json").exists()
        self._content = {"script": script.name, "row": row, "teacher_sha256": teacher_sha256}
        flags = dataclasses.asdict(args)
        if not self.is_new:
            self._refuse_other_flags(teacher_sha256)
            self._refuse_other_code()
            flags = files.load_json(self.path / "args.json", "arguments")["args"]  # changed code may have more flags
            for folder in (self.path, *self.path.glob("cycle_*")):
                files.remove_leftovers(folder)
            (self.path / elsewhere.WAITING).unlink(missing_ok=True)
        identity = [script.name, {k: v for k, v in flags.items() if k not in launch.FREE_FLAGS}, teacher_sha256]
        self.run_id = hashlib.sha256(json.dumps(identity).encode()).hexdigest()  # in each file that is read back

    def begin(self) -> None:
        """Write what is run into a new folder, at last `args.json`, from when on the folder holds a run."""
        if self.is_new:
            files.write_atomically(self.path / self.script.name, self.script.read_bytes())
            device = launch.learner_device(self._args)
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
            about = {"device": name, "code": code(self.script), "changes": []}
            files.save_json(self.path / "versions.json", versions() | about)
            files.save_json(self.path / "args.json", self._content | {"args": dataclasses.asdict(self._args)})
            tqdm.write(f"new run {self.path}, learning on {name}")

    def _open(self, row: str) -> Path:
        """Make the folder if there is none, and lock it."""
        args = self._args
        try:
            if args.run_dir is not None:
                path = Path(args.run_dir)
                path.mkdir(parents=True, exist_ok=True)
                # What a start leaves that was cut off before args.json is no reason to refuse.
                known = {self.script.name, "versions.json", "cycle_0000", "teacher.json"}
                strange = [p for p in path.iterdir() if p.name not in known and not p.name.startswith(".")]
                if strange and not (path / "args.json").exists():
                    raise UserError(f"--run-dir {path} is neither empty nor a run.")
            else:
                task, stamp = Path(args.env_id).name.replace(":", "-"), int(time.time())
                while True:
                    path = Path("runs") / f"{task}__{row.replace(':', '-')}__{args.seed}__{stamp}"
                    try:
                        path.mkdir(parents=True)
                        break
                    except FileExistsError:  # another run was started in the same second
                        stamp += 1
            self._lock = files.lock(path / ".lock", wait=False)
        except BlockingIOError:
            raise UserError(f"{path} is in use by another process.") from None
        except OSError as error:
            raise UserError(f"the run folder can't be written: {error.strerror} ({error.filename}).") from error
        return path

    def _refuse_other_flags(self, teacher_sha256: str | None) -> None:
        launch.saved_args(type(self._args), self.path)
        saved = files.load_json(self.path / "args.json", "arguments")
        if found := launch.difference(self._args, saved["args"]):
            flag, value, before = found
            raise UserError(f"{flag} {value} can't be changed in a run that was started with {flag} {before}.")
        if teacher_sha256 != saved["teacher_sha256"]:
            raise UserError(
                f"{self.path} was started with another teacher: --teacher {self._args.teacher} had SHA-256 "
                f"{saved['teacher_sha256']} and has {teacher_sha256} now; bring it back, or start in a new folder."
            )

    def _refuse_other_code(self) -> None:
        """Raise UserError if code or packages aren't those of the start, or book it where that is accepted."""
        path, now = self.path / "versions.json", versions() | {"code": code(self.script)}
        before = files.load_json(path, "versions")
        pairs = {name: (before[name], now[name]) for name in PACKAGES}
        pairs |= {name: (before["code"].get(name), now["code"].get(name)) for name in before["code"] | now["code"]}
        changed = {name: list(pair) for name, pair in pairs.items() if pair[0] != pair[1]}
        if changed and not self._args.accept_changes:
            named = ", ".join(f"{name} {a} -> {b}" if name in PACKAGES else name for name, (a, b) in changed.items())
            raise UserError(
                f"{self.path} was begun with other code or packages: {named}. Bring them back, start in a new folder, "
                "or go on all the same with --accept-changes, which the report will say."
            )
        if changed:
            files.save_json(path, before | now | {"changes": [*before["changes"], changed]})

    def close(self) -> None:
        """Free the lock."""
        self._lock.close()

    # ---- the files of each cycle

    def cycle_dir(self, cycle: int) -> Path:
        """Where batch, policy and evaluation of a cycle are."""
        return self.path / f"cycle_{cycle:04d}"

    def kept(self, cycle: int) -> bool:
        """Whether the batch and the policy of this cycle get files (`--keep-every`, and always the first and last)."""
        return cycle % self._args.keep_every == 0 or cycle == self._args.num_cycles

    def add_batch(self, cycle: int, episodes: list[Episode]) -> None:
        """Take a batch, which is written now or, for a cycle that isn't kept, with the next `write_batches`."""
        self._unsaved.append((cycle, episodes))
        if self.kept(cycle):
            self.write_batches()

    def write_batches(self) -> None:
        """Write the batches that have no file yet as one file."""
        if self._unsaved:
            cycles = [cycle for cycle, episodes in self._unsaved for _ in episodes]
            arrays = pack([episode for _, episodes in self._unsaved for episode in episodes], cycles)
            files.save_arrays(self.cycle_dir(cycles[-1]) / "batch.npz", run=np.array(self.run_id), **arrays)
            self._unsaved = []

    def read_batch(self, cycle: int, must_exist: bool) -> list[Episode] | None:
        """The batch of a cycle, or None if it has to be deployed. Files are read once, in order.

        Raises:
            UserError: it is lost or damaged, and `must_exist`, because its policy is no longer at hand.
        """
        try:
            if cycle > self._stored[0]:
                numbers = sorted(int(path.parent.name[6:]) for path in self.path.glob("cycle_*/batch.npz"))
                holder = next((number for number in numbers if number >= cycle), None)
                self._stored = (holder, self._read_batches(holder)) if holder is not None else (0, {})
        except UserError as error:
            if must_exist:
                raise
            tqdm.write(f"{error} It is deployed again.")  # by the same policy and seeds, so it is the very same
        batch = self._stored[1].pop(cycle, None)
        if batch is None and must_exist:
            raise UserError(f"{self.path} has lost its batch of cycle {cycle}; start again in a new folder.")
        return batch

    def _read_batches(self, holder: int) -> dict[int, list[Episode]]:
        path, batches = self.cycle_dir(holder) / "batch.npz", {}
        arrays = files.load_arrays(path, "batch")
        if str(arrays.pop("run", None)) != self.run_id:
            raise UserError(f"batch {path} belongs to another run.")
        for episode, number in zip(*unpack(arrays), strict=True):
            batches.setdefault(number, []).append(episode)
        return batches

    def copy_cycle_0(self, source: Path) -> None:
        """Take over what cycle 0 of the run in `source` left."""
        paths = [*(source / "cycle_0000").glob("*.*"), source / "teacher.json"]
        for path in (path for path in paths if path.is_file()):
            files.write_atomically(self.path / path.relative_to(source), path.read_bytes())

    def origin(self) -> dict[str, Any]:
        """What a snapshot says of where it comes from."""
        return {"command": launch.command(self._args, self.script.name), "versions": versions()}
