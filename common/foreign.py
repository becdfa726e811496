"""Your own class from a file, named FILE.py:Class on the command line."""

import functools
import hashlib
import importlib.util
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from common import UserError


def is_reference(name: str) -> bool:
    """Whether `name` looks like FILE.py:Class."""
    return name.rpartition(":")[0].endswith(".py")


def digest(name: str) -> str:
    """SHA-256 of the file's text and the class's name, wherever the file lies. Raises UserError if there is no file."""
    path, _, class_name = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{name}: there is no file {path}.")
    return hashlib.sha256(Path(path).read_bytes() + class_name.encode()).hexdigest()


def guard(name: str, doing: str, function: Callable[[], Any]) -> Any:
    """Call your code. What it raises goes on with its traceback, and one sentence says whose it is and when it came.

    An exception that can't leave a worker process, or would end the run without a word, becomes a RuntimeError.
    """
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        sentence = f"error: {name}: {doing} raised {error!r}."
        try:
            portable = isinstance(error, Exception) and pickle.loads(pickle.dumps(error)) is not None
        except Exception:  # whatever a class of yours does when it is copied
            portable = False
        if not portable:
            raise RuntimeError(sentence) from error
        error.add_note(sentence)
        raise


def load_class(name: str) -> type:
    """Import the file, once per process unless its text changes, and return the class.

    Raises UserError if there is no such file or class; what the file raises comes through.
    """
    path, _, class_name = name.rpartition(":")
    digest(name)  # there is such a file
    module = _import(str(Path(path).resolve()), Path(path).read_bytes())
    if not hasattr(module, class_name):
        raise UserError(f"{name}: {path} defines no {class_name}.")
    return getattr(module, class_name)


@functools.cache
def _import(path: str, _: bytes) -> ModuleType:
    """The module; its name depends on its place alone, so that its exceptions can come back from workers."""
    name = f"foreign_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    guard(path, "importing it", lambda: spec.loader.exec_module(module))
    return module
