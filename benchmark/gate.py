"""Would a gate before each deployment have held back the policies that fall? Asked of finished runs, after the fact.

    python benchmark/gate.py RUN_DIR [RUN_DIR ...] --output benchmark/results/gate

A gate deploys the policy pi_k of cycle k only if its estimated return isn't below that of pi_{k-1}, deployed last, and
deploys that one again else. Both are estimated from what there is before the deployment, the batches D_1 to D_k: fitted
Q evaluation trains the run's own categorical critic on by equation 2 with the policy in question as the target policy,
and the estimate is the mean Q(s0, pi(s0)) over the start states. Of the policy deployed last there are the discounted
returns of its deployment too, so there are two rules: FQE against FQE, and FQE against the deployed returns.

A policy falls if the 95 % bootstrap interval of its paired noise-free returns minus those of pi_{k-1} is below 0, as in
the report. A gate is worth something if it holds back more of those that fall than of the others.
"""

import copy
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from claims import table
from plot import write_csv
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import gbrl_d4pg
from common import UserError, envs, files, report, rollouts
from common.replay import Replay

CPU = torch.device("cpu")
DEFAULTS = vars(gbrl_d4pg.Args())  # the flags that all scripts share
RULES = {"FQE against FQE": "fqe_before", "FQE against deployed returns": "deployed_before"}


@dataclass
class Args:
    """Which runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of finished runs"""
    output: Path
    """folder for gate.csv"""
    steps: int = 1_000
    """updates of fitted Q evaluation for each policy"""


def load(path: Path, args: gbrl_d4pg.Args, env: envs.EnvSpec) -> tuple[gbrl_d4pg.Policy, gbrl_d4pg.Critic]:
    """Policy and critic of a snapshot."""
    content = files.load_torch(path, "policy snapshot")
    policy = gbrl_d4pg.Policy(env.obs_size, env.action_size)
    critic = gbrl_d4pg.Critic(env.obs_size, env.action_size, args.num_atoms, args.v_min, args.v_max)
    policy.load_state_dict(content["policy"])
    critic.load_state_dict(content["critic"])
    return policy.requires_grad_(False), critic


def fitted_q(
    policy: gbrl_d4pg.Policy, critic: gbrl_d4pg.Critic, replay: Replay, starts: torch.Tensor, args: Args,
    run_args: gbrl_d4pg.Args,
) -> float:  # fmt: skip
    """The mean Q(s0, pi(s0)) over `starts`, (n, obs_size), once a copy of the critic has learned to evaluate pi."""
    critic, target = copy.deepcopy(critic), copy.deepcopy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), run_args.learning_rate, fused=True)
    sampler = torch.Generator().manual_seed(0)  # the same batches for both policies
    for step in range(args.steps):
        gbrl_d4pg.critic_loss(critic, policy, target, replay.sample(run_args.batch_size, sampler)).backward()
        gbrl_d4pg.optimizer_step(critic, optimizer, run_args.max_grad_norm)
        if (step + 1) % run_args.target_period == 0:
            target.load_state_dict(critic.state_dict())
    with torch.no_grad():
        return critic.q_value(starts, policy(starts)).mean().item()


def judge(run: Path, args: Args) -> Iterator[dict[str, Any]]:
    """What would have been known before the deployment of each cycle's policy, and what came of it."""
    content = files.load_json(run / "args.json", "arguments")
    run_args = gbrl_d4pg.Args(**{name: content["args"].get(name, default) for name, default in DEFAULTS.items()})
    env = envs.spec(run_args.env_id)
    paths = sorted(run.glob("cycle_*/batch.npz"))
    batches = [rollouts.unpack(files.load_arrays(path, "batch"))[0] for path in paths]
    capacity = sum(map(rollouts.num_steps, batches))
    replay = Replay(capacity, env.obs_size, env.action_size, run_args.n_step, run_args.gamma, CPU)
    deployed = [np.mean([e.discounted_return(run_args.gamma) for e in batch]) for batch in batches]
    for cycle, batch in enumerate(batches, start=1):
        replay.append(batch)
        starts = torch.from_numpy(np.stack([e.obs[0] for e in itertools.chain(*batches[:cycle])]))
        before, after = run / f"cycle_{cycle - 1:04d}", run / f"cycle_{cycle:04d}"
        returns = [np.array(files.load_json(at / "evaluation.json", "evaluation")["returns"]) for at in (before, after)]
        (old, _), (new, critic) = (load(at / "snapshot.pt", run_args, env) for at in (before, after))
        yield {
            "env_id": run_args.env_id,
            "row": content["row"],
            "seed": run_args.seed,
            "cycle": cycle,
            "return_before": returns[0].mean(),
            "return_after": returns[1].mean(),
            "falls": bool(report.bootstrap_interval(returns[1] - returns[0])[1] < 0),
            "deployed_before": deployed[cycle - 1],
            "deployed_after": deployed[cycle] if cycle < len(batches) else None,
            "fqe_before": fitted_q(old, critic, replay, starts, args, run_args),
            "fqe_after": fitted_q(new, critic, replay, starts, args, run_args),
        }


def summary(lines: list[dict[str, Any]]) -> str:
    """How many of the policies that fall, and of the others, each rule would have held back; a Markdown table."""
    cells = []
    for row in [*dict.fromkeys(line["row"] for line in lines), "all"]:
        for rule, bar in RULES.items():
            judged = [line for line in lines if row in (line["row"], "all")]
            held = [
                [line["fqe_after"] < line[bar] for line in judged if line["falls"] == falls] for falls in (True, False)
            ]
            cells.append([row, rule, *(f"{sum(of)} of {len(of)}" for of in held)])
    return table(["row", "rule", "of those that fall, held back", "of the others, held back"], cells)


def main(args: Args) -> None:
    """Judge all runs, write `gate.csv` and print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not args.runs:
        raise UserError("there is nothing to judge: give folders of finished runs.")
    lines = [line for run in tqdm(args.runs, disable=None) for line in judge(run, args)]
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()} for line in lines]
    write_csv(args.output / "gate.csv", rounded)
    print(summary(lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
