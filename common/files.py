"""Files that a run reads back: written atomically, verified when read, and never able to run code.

`.pt` and `.npz` files are zip archives whose records carry a CRC-32; NumPy checks it on reading, `torch.load` doesn't,
so `load_torch` does. JSON files carry a SHA-256 of their own content.
"""

import hashlib
import io
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, flush it to the disk and rename it over `path`.

    Whoever reads `path` sees the old content or the new one, never a part, also after a crash or on a full disk.
    """
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


def _damaged(path: Path, what: str, error: Exception | str) -> UserError:
    return UserError(f"{what} {path} is damaged ({error}); restore it from a copy, or delete it to have it made again.")


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Save tensors, numbers and strings in nested dicts and lists, as `torch.save` does, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_torch(path: Path, what: str) -> dict[str, Any]:
    """Load what `save_torch` wrote, on the CPU. `what` names the file's role in errors.

    Raises:
        UserError: the file is missing, truncated, fails its checksums, or holds anything but plain data.
    """
    content = _read(path, what)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"checksum of {bad} is wrong")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _damaged(path, what, "it holds something other than tensors, numbers and strings") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise _damaged(path, what, error) from error


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Save named arrays as an uncompressed `.npz`, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """Load what `save_arrays` wrote.

    Raises:
        UserError: the file is missing, truncated, fails its checksums, or holds Python objects.
    """
    content = _read(path, what)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, OSError, NotImplementedError, AttributeError) as error:
        raise _damaged(path, what, error) from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Save a dict as indented JSON with its own checksum under `sha256`, atomically."""
    write_atomically(path, (json.dumps(content | {"sha256": _digest(content)}, indent=2) + "\n").encode())


def load_json(path: Path, what: str) -> dict[str, Any]:
    """Load what `save_json` wrote, without the checksum.

    Raises:
        UserError: the file is missing, is no JSON, or fails its checksum.
    """
    raw = _read(path, what)
    try:
        content = json.loads(raw)
        expected = content.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, what, repr(error)) from error
    if _digest(content) != expected:
        raise _damaged(path, what, "its checksum is wrong")
    return content
