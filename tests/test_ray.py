"""Episodes on a Ray cluster are the same, also when one of its nodes is lost in the middle. Deselect: -m "not ray"."""

import os
import time

import pytest
from small import equal, script

from common import UserError, envs
from common.workers import Workers

ray = pytest.importorskip("ray", reason="Ray isn't installed: pip install -r requirements-ray.txt")
pytestmark = pytest.mark.ray
SPEC = envs.spec("cartpole-swingup")


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


def test_a_node_lost_in_the_middle_changes_nothing(cluster):
    policy, blocks = script("gbrl_d4pg").Policy(5, 1), []
    workers = Workers(SPEC, 0, ray_address=cluster.address)
    try:
        pending = [workers.submit(policy, 0.3, (7,), range(i, i + 10)) for i in range(0, 40, 10)]
        while not pending[0].done():
            time.sleep(0.1)
        cluster.remove_node(cluster.others.pop(), allow_graceful=False)
        for block in pending:
            blocks += block.result()
        assert equal(blocks, Workers(SPEC, 0).episodes(policy, 0.3, (7,), range(40), "here"))
        assert blocks[0].obs.flags.writeable
        while sum(node["Alive"] for node in ray.nodes()) == 3:  # the cluster notices the loss after a while
            time.sleep(0.1)
        with pytest.raises(UserError, match=r"^function returned actions of shape \(10, 5\)"):
            workers.submit(lambda obs: obs, 0.0, (7,), range(10)).result()
    finally:
        workers.close()
