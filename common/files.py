"""Files that a run reads back: written atomically, checked when read, and never able to run code.

`.pt` and `.npz` files are zip archives. `torch.load` doesn't compare their checksums, so they are compared here.
"""

import io
import json
import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from common import UserError

RESTORE, REMAKE = "restore it from a copy, or start again in a new folder", "delete it to have it made again"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` can't be written: a full disk, a quota, a folder that became read-only."""
    try:
        yield
    except OSError as error:
        cure = "put that right and start again, a run with --resume or the same --run-dir"
        raise UserError(f"{path} can't be written ({error.strerror}); {cure}.") from error


def lock(path: Path, wait: bool) -> ExitStack:
    """Make the file `path` and lock it until the result is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: another process has locked it, and it isn't waited for.
        OSError: it can't be made.
        UserError: its file system has no locks.
    """
    held = ExitStack()
    open(path, "a").close()
    try:
        held.enter_context(filelock.FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False))
    except filelock.Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error
    except OSError as error:
        raise UserError(f"{path} can't be locked ({error.strerror}): choose a file system that has flock.") from error
    return held


def remove_leftovers(folder: Path) -> None:
    """Remove what a SIGKILL left of `write_atomically`. Call it only while you hold the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk and rename it over `path`.

    A reader of `path` sees the old content or the new one, never a part, also after a crash or on a full disk.
    Raises UserError where it can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private, but runs are shared within a group
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _read(path: Path, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} can't be read: {error.strerror}.") from error


def _damaged(path: Path, what: str, cure: str, error: Exception | str) -> UserError:
    return UserError(f"{what} {path} is damaged ({error}); {cure}.")


def _read_zip(path: Path, what: str, cure: str) -> io.BytesIO:
    """The content of a zip archive whose parts all have the right CRC."""
    content = io.BytesIO(_read(path, what))
    try:
        with zipfile.ZipFile(content) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, OSError, EOFError, zlib.error) as error:
        raise _damaged(path, what, cure, error) from error
    if bad is not None:
        raise _damaged(path, what, cure, f"the checksum of {bad} is wrong")
    content.seek(0)
    return content


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Save tensors, numbers and strings in nested dicts and lists, as `torch.save` does, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_torch(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_torch` wrote, on the CPU. In errors, `what` names the file's role and `cure` what to do.

    Raises:
        UserError: the file is missing, truncated, fails its checksums, or holds anything but plain data.
    """
    raw = _read_zip(path, what, cure)
    try:
        content = torch.load(raw, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:  # whole, but not by `save_torch`
        raise _damaged(path, what, cure, "it isn't plain tensors, numbers and strings") from error
    if not isinstance(content, dict):
        raise _damaged(path, what, cure, f"it is a {type(content).__name__}, not a dict")
    return content


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Save named arrays as an uncompressed `.npz`, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, what: str, cure: str = RESTORE) -> dict[str, np.ndarray]:
    """Load what `save_arrays` wrote. Raises UserError as `load_torch` does."""
    content = _read_zip(path, what, cure)
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, ValueError, AttributeError) as error:  # whole, but not by `save_arrays`
        raise _damaged(path, what, cure, "it isn't plain named arrays") from error


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Save a dict as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def load_json(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_json` wrote, without the `sha256` entry of older files. Raises UserError as `load_torch` does."""
    try:
        content = json.loads(_read(path, what))
    except ValueError as error:
        raise _damaged(path, what, cure, repr(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, what, cure, f"it is a {type(content).__name__}, not a dict")
    content.pop("sha256", None)
    return content
