import functools

import pytest
import torch
from small import TOY, live, make_args, run_method


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("demos")


@pytest.fixture(scope="session")
def alone(tmp_path_factory, demo_dir):
    """A function of a method: its undisturbed run on the toy task, made once."""
    return functools.cache(lambda method: run_method(method, tmp_path_factory.mktemp("alone") / "run", demo_dir, **TOY))


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, demo_dir):
    """A run of ta:1 on the toy task, killed in cycle 2. Copy it before you change it."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    assert live("ta:1", make_args("ta:1", run_dir, demo_dir, **TOY)[1], steps=[(2, 50)]) == (2, 50)
    return run_dir
