"""A policy of a training run ships with its score, and its own command makes it again, bit for bit."""

import subprocess
import sys

import make_teachers
import numpy as np
import pytest
import torch

from common import files, teachers

SMALL = "--env-id pendulum-swingup --teacher none --num-cycles 3 --actor-steps 3000 --samples-per-insert 4.0"
SMALL += " --batch-size 32 --eval-every 20 --report-episodes 1 --num-workers 0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three cycles, and its second policy shipped as a mid-tier teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    words = ["gbrl_d4pg.py", *SMALL.split(), "--run-dir", str(folder / "run")]
    subprocess.run([sys.executable, str(make_teachers.ROOT / words[0]), *words[1:]], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "SHIPPED", folder / "teachers")
        patch.setattr(make_teachers, "RESULTS", folder / "results")
        patch.setattr(make_teachers, "SCORE_EPISODES", 2)
        make_teachers.Ship(folder / "run", 2, "mid")()
        make_teachers.Report()()
        yield folder


def test_a_shipped_policy_is_made_again_by_its_command(folder, tmp_path):
    shipped = folder / "teachers" / "pendulum-swingup-mid.pt"
    entry = files.load_json(shipped.parent / "manifest.json", "manifest")[shipped.name]
    assert set(SMALL.split()) <= set(entry["command"].split()) and "--run-dir" not in entry["command"]
    assert (entry["cycle"], entry["actor_step"], entry["return"]["episodes"]) == (2, 2000, 2)
    with pytest.raises(SystemExit) as end:
        make_teachers.Train("pendulum-swingup-mid", tmp_path / "again")()
    assert end.value.code == 0
    again = files.load_torch(tmp_path / "again" / "cycle_0002" / "snapshot.pt", "snapshot")
    content = files.load_torch(shipped, "teacher snapshot")
    assert content["metadata"]["score"] == entry["return"]["mean"]
    for network in ("policy", "critic"):
        for name, value in content[network].items():
            assert torch.equal(value, again[network][name])
    curve = np.loadtxt(folder / "results" / "pendulum-swingup.csv", delimiter=",", skiprows=1)
    assert list(curve[:, 0]) == [1000] * 7 + [2000] * 6 + [3000] * 7  # at updates 0, 20, .., 360 and 375
