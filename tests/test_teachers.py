"""The shipped teachers are what the manifest says, play as it says, and their commands make them again, bit for bit."""

import subprocess
import sys

import make_teachers
import numpy as np
import pytest
import torch
from make_teachers import FACTS
from small import CPU, ROOT

from common import envs, evaluate, files, snapshots, teachers

TASKS = ("cartpole-balance", "cartpole-swingup", "cheetah-run", "finger-spin", "pendulum-swingup", "walker-run")
MANIFEST = files.load_json(teachers.SHIPPED / "manifest.json", "manifest")


def test_the_manifest_names_every_file():
    assert sorted(MANIFEST) == sorted(path.name for path in teachers.SHIPPED.glob("*.pt"))
    assert sorted(MANIFEST) == sorted(f"{task}-{tier}.pt" for task in TASKS for tier in ("expert", "mid"))
    assert sum(path.stat().st_size for path in teachers.SHIPPED.iterdir()) < 20e6


@pytest.mark.parametrize("name", MANIFEST)
def test_a_teacher_is_what_it_says(name):
    entry, snapshot = MANIFEST[name], snapshots.load(teachers.SHIPPED / name, CPU)
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


SMALL = "--env-id pendulum-swingup --teacher none --num-cycles 3 --actor-steps 3000 --samples-per-insert 4.0"
SMALL += " --batch-size 32 --eval-every 20 --report-episodes 1 --num-workers 0"


def test_a_policy_ships_with_its_score_and_its_command_makes_it_again(tmp_path, monkeypatch):
    words = [sys.executable, ROOT / "gbrl_d4pg.py", *SMALL.split(), "--run-dir", tmp_path / "run"]
    subprocess.run(words, check=True, capture_output=True)
    monkeypatch.setattr(teachers, "SHIPPED", tmp_path / "teachers")
    monkeypatch.setattr(make_teachers, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_teachers, "SCORE_EPISODES", 2)
    make_teachers.Ship(tmp_path / "run", 2, "mid")()
    make_teachers.Report()()
    name = "pendulum-swingup-mid"
    entry = files.load_json(tmp_path / "teachers" / "manifest.json", "manifest")[f"{name}.pt"]
    assert set(SMALL.split()) <= set(entry["command"].split()) and "--run-dir" not in entry["command"]
    assert (entry["cycle"], entry["actor_step"], entry["return"]["episodes"]) == (2, 2000, 2)
    with pytest.raises(SystemExit) as end:
        make_teachers.Train(name, tmp_path / "again")()
    assert end.value.code == 0
    again = files.load_torch(tmp_path / "again" / "cycle_0002" / "snapshot.pt", "snapshot")
    content = files.load_torch(tmp_path / "teachers" / f"{name}.pt", "teacher snapshot")
    assert content["metadata"]["score"] == entry["return"]["mean"]
    for network in ("policy", "critic"):
        assert all(torch.equal(value, again[network][key]) for key, value in content[network].items())
    curve = np.loadtxt(tmp_path / "results" / "pendulum-swingup.csv", delimiter=",", skiprows=1)
    assert list(curve[:, 0]) == [1000] * 7 + [2000] * 6 + [3000] * 7  # at updates 0, 20, .., 360 and 375
