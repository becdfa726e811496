"""Files that a run reads back: written atomically, checked when read, and never able to run code.

`.pt` and `.npz` files are zip archives. `torch.load` doesn't check their checksums, so we do it here.
"""

import io
import json
import os
import pickle
import secrets
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from common import UserError

RESTORE, REMAKE = "restore it from a copy, or start again in a new folder", "delete it to have it made again"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError (a full disk, a quota, a read-only folder) into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        cure = "fix that and start again; continue a run with --resume or the same --run-dir"
        raise UserError(f"{path} can't be written ({error.strerror}); {cure}.") from error


def lock(path: Path) -> filelock.BaseFileLock:
    """Lock the file `path` until the result is released or the process ends, however it ends.

    Raises:
        UserError: another process has locked it, or its file system has no locks.
    """
    held = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout:
        raise UserError(f"{path.parent} is in use by another process.") from None
    except OSError as error:
        cure = "choose a folder that you may write, on a file system that has flock"
        raise UserError(f"{path} can't be locked ({error.strerror}): {cure}.") from error
    return held


def remove_leftovers(folder: Path) -> None:
    """Remove files that a killed `write_atomically` left. Call it only while you hold the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that `path` never holds a part of it, even if the machine crashes.

    Raises:
        UserError: the file can't be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read(path: Path, what: str, cure: str, parse: Callable[[io.BytesIO], Any]) -> Any:
    """Read a file and return `parse(content)`. Errors say `what` the file is, and the `cure`.

    Raises:
        UserError: the file is missing, or damaged, so that `parse` raises anything.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{what} {path} can't be read: {error.strerror}.") from error
    try:
        return parse(content)
    except Exception as error:
        code = isinstance(error, pickle.UnpicklingError)  # torch's message advises to switch this check off
        reason = "it isn't plain data" if code else str(error).partition("\n")[0] or repr(error)
        raise UserError(f"{what} {path} is damaged ({reason}); {cure}.") from error


def _whole(content: io.BytesIO) -> io.BytesIO:
    """Check all checksums of a zip archive, and return it."""
    if bad := zipfile.ZipFile(content).testzip():
        raise ValueError(f"the checksum of {bad} is wrong")
    content.seek(0)
    return content


def _dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError(f"it is a {type(content).__name__}, not a dict")
    return content


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Save tensors, numbers and strings in nested dicts and lists, as `torch.save` does, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_torch(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_torch` wrote, on the CPU. Raises UserError as `read` does."""
    return read(path, what, cure, lambda raw: _dict(torch.load(_whole(raw), map_location="cpu", weights_only=True)))


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Save named arrays as an uncompressed `.npz`, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, what: str, cure: str = RESTORE) -> dict[str, np.ndarray]:
    """Load what `save_arrays` wrote. Raises UserError as `read` does."""
    return read(path, what, cure, lambda raw: dict(np.load(_whole(raw), allow_pickle=False)))


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Save a dict as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def load_json(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_json` wrote. Raises UserError as `read` does."""
    return read(path, what, cure, lambda raw: _dict(json.load(raw)))
