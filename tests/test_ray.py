"""A sweep on a Ray cluster ends as one on this machine, also when a node is lost. Deselect: -m "not ray"."""

import os
import subprocess
import sys
import time

import pytest
from small import ROOT, SMALL, TOY, differences, result, words

pytest.importorskip("ray", reason="Ray isn't installed: pip install -r requirements-ray.txt")
pytestmark = pytest.mark.ray
FLAGS = SMALL | TOY | {"learner_steps": 2_000, "eval_every": 500}
METHODS = ("bc", "ta:1")


@pytest.fixture
def cluster():
    """A head, which runs nothing, and two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    cluster.others = [cluster.add_node(num_cpus=1, **node) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def sweep(here, *more):
    """The command of a sweep in the folder `here`, and where it is started."""
    own = ["--methods", *METHODS, "--output", "out", "--seeds", "1", "--num-cycles", "2", *more]
    own += ["--env-ids", TOY["env_id"], "--teacher", TOY["teacher"]]
    flags = {name: value for name, value in FLAGS.items() if name not in ("env_id", "teacher", "num_cycles")}
    command = [sys.executable, str(ROOT / "benchmark" / "sweep.py"), *own, "--", *words(flags)]
    return {"args": [*command, f"--demo-dir={here}/demos"], "cwd": here}


def test_a_node_lost_in_the_middle_changes_nothing(cluster, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with subprocess.Popen(**sweep(there, "--ray-address", cluster.address)) as on_ray:
        try:
            names = [f"toy.py-Point__{name.replace(':', '-')}__toy.py-Pusher__2__1__1" for name in METHODS]
            logs = [there / "out" / f"{name}.log" for name in names]
            while not all(log.exists() and "continuing " in log.read_text() for log in logs):  # the clone
                assert on_ray.poll() is None
                time.sleep(0.05)
            assert not any((there / "out" / name / "report.json").exists() for name in names)
            cluster.remove_node(cluster.others.pop(), allow_graceful=False)
            assert on_ray.wait() == 0
        finally:
            on_ray.kill()  # where an assertion failed
    assert [log.read_text().count("continuing ") for log in logs] in ([2, 1], [1, 2])
    assert (there / "out" / "curves.png").exists()
    subprocess.check_call(**sweep(here), env=os.environ | {"SLURM_CPUS_PER_TASK": "2"})
    for name in names:
        assert differences(result(there / "out" / name), result(here / "out" / name)) == []
