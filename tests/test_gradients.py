"""Lengths, agreement and pull of a student's and a teacher's gradients."""

import gradients
import pytest
import torch
from small import metrics

from common import UserError


class Bowl:
    """Q = -|a|^2, whose gradient leads back from wherever the action is."""

    def action_gradient(self, obs, action):
        return -2 * action


class Slope:
    """Q = 3 a_1, whose gradient says where to go and not how far."""

    def action_gradient(self, obs, action):
        return torch.tensor([3.0, 0.0]).expand_as(action)


def test_a_bowl_pulls_back_and_a_slope_does_not():
    action, direction = torch.zeros(8, 2), torch.nn.functional.normalize(torch.ones(8, 2), dim=-1)
    at = torch.zeros(8, 1), action, action + 0.3 * direction, direction
    gradient, pull = gradients.pulls(Bowl(), *at, clip=1.0)
    assert torch.equal(gradient, action) and pull == pytest.approx(0.6)
    assert gradients.pulls(Bowl(), *at, clip=0.2)[1] == pytest.approx(0.2)
    gradient, pull = gradients.pulls(Slope(), *at, clip=1.0)
    assert gradient.norm(dim=-1).tolist() == [1.0] * 8 and pull == 0


def test_deployed_policies_are_measured_on_their_batches(alone, tmp_path, capsys):
    run_dir = alone("tg:1")
    capsys.readouterr()  # what the run printed
    gradients.main(gradients.Args((run_dir,), distance=0.2))
    _, _, *lines = capsys.readouterr().out.splitlines()
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    logged = [line for line in metrics(run_dir) if "teacher/dqda_cosine" in line]
    assert [line[2] for line in lines] == ["pi_0", "pi_1"]
    for line, at_deployment in zip(lines, logged, strict=True):
        assert float(line[3]) == pytest.approx(at_deployment["deploy/episodic_return"], abs=0.51)
        assert float(line[6]) == pytest.approx(at_deployment["teacher/dqda_cosine"], abs=0.0051)
        assert 0.15 < float(line[8]) <= 0.2  # the toy task's teacher pulls back by all of the way, within the bounds
    with pytest.raises(UserError, match="nothing to measure"):
        gradients.main(gradients.Args(()))
    with pytest.raises(UserError, match=r"args\.json"):
        gradients.main(gradients.Args((tmp_path,)))
