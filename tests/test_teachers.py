"""The shipped teachers are what the manifest says, and play as it says."""

import numpy as np
import pytest
import torch
from make_teachers import FACTS

from common import envs, evaluate, files, snapshots, teachers

TASKS = ("cartpole-balance", "cartpole-swingup", "cheetah-run", "finger-spin", "pendulum-swingup", "walker-run")
MANIFEST = files.load_json(teachers.SHIPPED / "manifest.json", "manifest")


def test_the_manifest_names_every_file():
    assert sorted(MANIFEST) == sorted(path.name for path in teachers.SHIPPED.glob("*.pt"))
    assert sorted(MANIFEST) == sorted(f"{task}-{tier}.pt" for task in TASKS for tier in ("expert", "mid"))
    assert sum(path.stat().st_size for path in teachers.SHIPPED.iterdir()) < 20e6


@pytest.mark.parametrize("name", MANIFEST)
def test_a_teacher_is_what_it_says(name):
    entry, snapshot = MANIFEST[name], snapshots.load(teachers.SHIPPED / name, torch.device("cpu"))
    assert snapshot.sha256 == entry["file_sha256"]
    spec = envs.spec(snapshot.env_id)
    assert name == f"{spec.env_id}-{snapshot.metadata['tier']}.pt"
    assert snapshot.sizes == (spec.obs_size, spec.action_size) and snapshot.gives_gradients
    low, high = entry["return"]["ci95"]  # the same episodes, but another processor rounds differently
    assert low <= snapshot.metadata["score"] <= high
    assert {fact: snapshot.metadata[fact] for fact in FACTS} == {fact: entry[fact] for fact in FACTS}
    assert entry["learner_step"] == entry["actor_step"] // 8  # 32 samples per insert, 256 an update
    low, high = {"expert": (750, 1000), "mid": (500, 700)}[snapshot.metadata["tier"]]
    assert low <= entry["return"]["mean"] <= high and entry["return"]["episodes"] == 100
    returns = evaluate.score(snapshot, 10, seed=1, num_workers=0)  # episodes that nobody chose it by
    assert np.mean(returns) == pytest.approx(entry["return"]["mean"], abs=3 * entry["return"]["std"] / 10**0.5 + 5)
