"""Files that a run reads back: written atomically, verified when read, and never able to run code.

`.pt` and `.npz` files are zip archives, whose checksums `torch.load` leaves unread: here they are checked. They don't
cover the archive's directory, where a flipped bit can hide an array, so the SHA-256 of the archive is its comment.
JSON files carry the SHA-256 of their content as an entry.
"""

import fcntl
import hashlib
import io
import json
import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from common import UserError

RESTORE, REMAKE = "restore it from a copy, or start again in a new folder", "delete it to have it made again"
SEAL_LENGTH = (32).to_bytes(2, "little")  # an archive's last two bytes are the length of its comment


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` can't be written: a full disk, a quota, a folder that became read-only."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}); put that right and start again, a run with --resume or the "
            "same --run-dir."
        ) from error


def lock(path: Path, wait: bool) -> IO:
    """Make the file `path` and lock it for this process, until it is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: another process has locked it, and it isn't waited for.
        OSError: it can't be made.
        UserError: its file system knows no locks.
    """
    file = open(path, "w")  # noqa: SIM115 (whoever calls closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(f"{path} can't be locked ({error.strerror}): choose a file system that has flock.") from error
    return file


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what a SIGKILL left of `write_atomically`; only for who holds the folder's lock."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk and rename it over `path`.

    Whoever reads `path` sees the old content or the new one, never a part, also after a crash or on a full disk.
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


def _read_zip(path: Path, what: str, cure: str) -> io.BytesIO:
    """The content of a zip archive, as `.pt` and `.npz` files are, its seal and every part's CRC checked."""
    raw = _read(path, what)
    if raw[-34:-32] == SEAL_LENGTH and hashlib.sha256(raw[:-34] + bytes(2)).digest() != raw[-32:]:
        raise _damaged(path, what, cure, "its checksum is wrong")
    content = io.BytesIO(raw)
    try:
        with zipfile.ZipFile(content) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, OSError, EOFError, zlib.error) as error:
        raise _damaged(path, what, cure, error) from error
    if bad is not None:
        raise _damaged(path, what, cure, f"the checksum of {bad} is wrong")
    content.seek(0)
    return content


def _write_zip(path: Path, archive: bytes) -> None:
    """Write a zip archive that has no comment, with its SHA-256 as its comment."""
    write_atomically(path, archive[:-2] + SEAL_LENGTH + hashlib.sha256(archive).digest())


def _damaged(path: Path, what: str, cure: str, error: Exception | str) -> UserError:
    return UserError(f"{what} {path} is damaged ({error}); {cure}.")


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Save tensors, numbers and strings in nested dicts and lists, as `torch.save` does, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _write_zip(path, buffer.getvalue())


def load_torch(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_torch` wrote, on the CPU. In errors, `what` names the file's role and `cure` what to do.

    Raises:
        UserError: the file is missing, truncated, fails its checksum, or holds anything but plain data.
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
    _write_zip(path, buffer.getvalue())


def load_arrays(path: Path, what: str, cure: str = RESTORE) -> dict[str, np.ndarray]:
    """Load what `save_arrays` wrote. Raises UserError as `load_torch` does."""
    content = _read_zip(path, what, cure)
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, ValueError, AttributeError) as error:  # whole, but not by `save_arrays`
        raise _damaged(path, what, cure, "it isn't plain named arrays") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Save a dict as indented JSON with its own checksum under `sha256`, atomically."""
    write_atomically(path, (json.dumps(content | {"sha256": _digest(content)}, indent=2) + "\n").encode())


def load_json(path: Path, what: str, cure: str = RESTORE) -> dict[str, Any]:
    """Load what `save_json` wrote, without the checksum. Raises UserError as `load_torch` does."""
    raw = _read(path, what)
    try:
        content = json.loads(raw)
        expected = content.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, what, cure, repr(error)) from error
    if _digest(content) != expected:
        raise _damaged(path, what, cure, "its checksum is wrong")
    return content
