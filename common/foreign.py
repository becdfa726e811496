"""Somebody's own class from a file, named FILE.py:Class on the command line."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import UserError


def is_reference(name: str) -> bool:
    """Whether `name` looks like FILE.py:Class."""
    return name.rpartition(":")[0].endswith(".py")


def digest(name: str) -> str:
    """SHA-256 of the file's text and the class's name. Raises UserError if there is no file."""
    path, _, class_name = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{name}: there is no file {path}.")
    return hashlib.sha256(Path(path).read_bytes() + class_name.encode()).hexdigest()


def guard(name: str, doing: str, function: Callable[[], Any]) -> Any:
    """Call foreign code. Whatever it raises becomes a UserError that names its file and line."""
    path = name.rpartition(":")[0]
    try:
        return function()
    except UserError:  # of a guard inside
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f" at {path}, line {lines[-1]}" if lines else ""
        raise UserError(f"{name}: {doing} raised {error!r}{where}.") from error


def load_class(name: str) -> type:
    """Import the file and return the class. Raises UserError if that can't be done."""
    path, _, class_name = name.rpartition(":")
    digest(name)
    module_name = f"foreign_{Path(path).stem}"

    def import_file() -> Any:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        return module

    module = guard(name, "importing it", import_file)
    if not hasattr(module, class_name):
        raise UserError(f"{name}: {path} defines no {class_name}.")
    return getattr(module, class_name)
