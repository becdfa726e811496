"""Episodes on a Ray cluster are the same, also when one of its nodes is lost in the middle. Deselect: -m "not ray"."""

import os
import time

import numpy as np
import pytest
from small import script

from common import UserError, rollouts

ray = pytest.importorskip("ray", reason="Ray isn't installed: pip install -r requirements-ray.txt")
pytestmark = pytest.mark.ray
TASK = "cartpole-swingup"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes of one CPU each; they start far from this checkout and import nothing from it."""
    from ray.cluster_utils import Cluster

    here, path = os.getcwd(), os.environ.pop("PYTHONPATH", None)
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.others = [cluster.add_node(**node) for _ in range(2)]
    os.chdir(here)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if path is not None:
        os.environ["PYTHONPATH"] = path


def equal(first, second):
    pairs = zip(first, second, strict=True)
    return all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


def test_a_node_lost_in_the_middle_changes_nothing(cluster):
    policy, blocks = script("gbrl_d4pg").Policy(5, 1), []
    here = rollouts.Workers(0).collect(TASK, policy, 0.3, (7,), range(40))
    workers = rollouts.Workers(0, ray_address=cluster.address)
    try:
        pending = [workers.submit(TASK, policy, 0.3, (7,), range(i, i + 10)) for i in range(0, 40, 10)]
        while not pending[0].done():
            time.sleep(0.1)
        cluster.remove_node(cluster.others.pop(), allow_graceful=False)
        for block in pending:
            blocks += block.result()
        deadline = time.monotonic() + 120
        while sum(node["Alive"] for node in ray.nodes()) == 3:  # the cluster notices the loss after a while
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert equal(blocks, here) and blocks[0].obs.flags.writeable
        with pytest.raises(UserError, match=r"^function returned actions of shape \(10, 5\)"):
            workers.submit(TASK, lambda obs: obs, 0.0, (7,), range(10)).result()
    finally:
        workers.close()
