"""Growing-batch D4PG with policy regularisation (Emedom-Nnamdi et al. 2023, equations 3 to 5).

A penalty keeps the policy close to the clone pi_0, with a fixed weight (`bc_reg`) or one that decays to 0 at
--decay-rate r (`bc_reg_decay:r`), or close to the last deployed policy pi_{k-1} (`between:r`). Everything else is
gbrl_d4pg.py; a diff of the two files shows the method.

    python gbrl_bc_reg.py --env-id cartpole-swingup --scale 0.02

This ends within minutes; without --scale it runs the paper's protocol.
"""

import copy
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, launch, rollouts
from common.envs import EnvSpec
from common.launch import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, PositiveOrInf
from common.replay import Replay
from common.rollouts import Episode
from common.run import Run
from common.teachers import Teacher

# ======== flags


@dataclass
class Args(launch.RunArgs):
    """The flags of the algorithm. Each help text ends with the source of its default."""

    # ---- this script's own
    method: typing.Literal["bc_reg", "bc_reg_decay", "between"] = "bc_reg_decay"
    """bc_reg: equation 3, bc_reg_decay: equation 4, between: equation 5 [paper 3.3]"""
    bc_weight: NonNegativeFloat = 0.5
    """lambda of equation 3, for bc_reg only [paper 4.2]"""
    decay_rate: PositiveFloat = 1.0
    """rate r of alpha's decay, not for bc_reg [paper 4.2: 1 and 5]"""
    alpha_form: typing.Literal["zero_at_end", "plain"] = "zero_at_end"
    """(e^(-r n/T) - e^-r) / (1 - e^-r), which reaches 0, or e^(-r n/T), which doesn't [paper 4.2: reaches 0]"""
    alpha_per_cycle: bool = False
    """restart alpha in every cycle, one reading of Algorithm 1's index j [paper 3.3: counts all learner steps]"""
    # ---- shared by the four scripts
    env_id: str = "cartpole-swingup"
    """dm_control suite task as domain-task [paper 4.1 has six], a Gymnasium id, or your own FILE.py:Class [ours]"""
    teacher: str = "expert"
    """expert, mid, PATH.pt, FILE.py:Class, recorded FILE.npz, or none if the method needs no teacher [paper 4.2]"""
    num_cycles: PositiveInt = 4
    """number of deployments N; the paper uses 4 and 8 [paper A.2]"""
    seed: NonNegativeInt = 1
    """random seed; the demonstrations are seeded by their teacher [ours]"""
    scale: PositiveFloat = 1.0
    """fraction of the paper's budget and demonstrations (at least 100) and our critic steps (at least 10,000) [ours]"""
    actor_steps: PositiveInt | None = None
    """environment steps over all cycles, in whole episodes; default 2,000,000 x scale [paper A.2]"""
    learner_steps: PositiveInt | None = None
    """learner updates over all cycles; default actor steps x samples-per-insert / batch-size [paper A.2]"""
    samples_per_insert: PositiveFloat = 32.0
    """transitions sampled per transition collected [paper A.2]"""
    demo_episodes: PositiveInt | None = None
    """number of demonstrations; default 1,000 x scale, at least 100 [paper 4.2; the minimum is ours]"""
    demo_sigma: NonNegativeFloat = 0.3
    """standard deviation of the exploration noise in demonstrations; 0 for none [paper A.2, Acme]"""
    demos_in_replay: bool = False
    """add the demonstrations to the growing batch as batch 0; the paper's union starts at D_1 [ours]"""
    bc_steps: NonNegativeInt = 30_000
    """behaviour-cloning steps, at any scale [ours, measured]"""
    bc_learning_rate: PositiveFloat = 1e-3
    """Adam's step size in behaviour cloning, falling linearly to 0 [ours, measured]"""
    critic_steps: NonNegativeInt | None = None
    """critic-evaluation steps on the demonstrations, 0 to skip; default 100,000 x scale, at least 10,000 [ours]"""
    buffer_size: PositiveInt = 10_000_000
    """capacity of the replay buffer; nothing is evicted, so a run that needs more is refused [paper A.2]"""
    batch_size: PositiveInt = 256
    """transitions per update [paper A.2]"""
    learning_rate: PositiveFloat = 1e-4
    """Adam's step size for both networks [paper A.2, which prints 1x10^4]"""
    gamma: launch.Fraction = 0.99
    """discount per step [Acme]"""
    n_step: PositiveInt = 5
    """steps of return before the bootstrap [paper A.2]"""
    num_atoms: PositiveInt = 51
    """atoms of the categorical critic [paper A.2]"""
    v_min: launch.FiniteFloat = -150.0
    """lowest atom [paper A.2]"""
    v_max: launch.FiniteFloat = 150.0
    """highest atom [paper A.2]"""
    sigma: NonNegativeFloat = 0.3
    """standard deviation of the exploration noise; the paper prints N(0, 3) [Acme]"""
    target_period: PositiveInt = 100
    """learner steps between copies into the target networks [Acme]"""
    max_grad_norm: PositiveOrInf = 40.0
    """clip of each network's gradient norm [Acme]"""
    dqda_clip: PositiveOrInf = 1.0
    """clip of each sample's action-gradient norm, inf to switch off [Acme]"""
    eval_every: PositiveInt = 100
    """learner steps between evaluations and lines of metrics [paper 4.2]"""
    eval_episodes: launch.UpToTen = 1
    """noise-free episodes per evaluation, up to 10; 0 for no evaluations [ours]"""
    report_episodes: PositiveInt = 20
    """noise-free episodes per cycle in the report [ours]"""


def resolve(args: Args, env: EnvSpec) -> Args:
    """A copy of the flags with all derived defaults filled in. Raises UserError if flags contradict each other."""
    args = copy.copy(args)
    if args.num_atoms < 2 or not args.v_min < args.v_max:
        raise UserError(f"--num-atoms {args.num_atoms} from {args.v_min} to {args.v_max}: need >= 2, v-min < v-max.")
    args.actor_steps = round((args.actor_steps or 2_000_000 * args.scale) / env.episode_length) * env.episode_length
    args.learner_steps = args.learner_steps or int(args.actor_steps * args.samples_per_insert / args.batch_size)
    args.demo_episodes = args.demo_episodes or max(100, round(1_000 * args.scale))
    if args.critic_steps is None:
        args.critic_steps = max(10_000, round(100_000 * args.scale))
    for flag, value in own_defaults(args).items():
        setattr(args, flag, value)
    if args.demos_in_replay and args.teacher == "none":
        raise UserError("--demos-in-replay needs a teacher that gives demonstrations.")
    num_episodes = args.actor_steps // env.episode_length
    if args.num_cycles > min(num_episodes, args.learner_steps):
        raise UserError(
            f"--num-cycles {args.num_cycles}: each cycle needs at least an episode and an update; the budget has "
            f"{num_episodes} episodes and {args.learner_steps} updates."
        )
    if capacity(args, env) > args.buffer_size:
        raise UserError(f"--buffer-size {args.buffer_size}: this run needs up to {capacity(args, env)} transitions.")
    return args


def capacity(args: Args, env: EnvSpec) -> int:
    """Upper bound on the replay's size; the last episode may overshoot the budget."""
    return args.actor_steps + env.episode_length - 1 + args.demos_in_replay * args.demo_episodes * env.episode_length


def deployed_after(args: Args, env: EnvSpec, cycle: int) -> int:
    """Environment steps after `cycle` cycles: equal shares of the budget, in whole episodes [paper A.2]."""
    return cycle * (args.actor_steps // env.episode_length) // args.num_cycles * env.episode_length


def learned_after(args: Args, actor_step: int) -> int:
    """Learner steps after `actor_step` environment steps; every cycle has the same samples per insert [paper A.2]."""
    return min(args.learner_steps, args.learner_steps * actor_step // args.actor_steps)


# ======== networks

Batch = dict[str, torch.Tensor]  # obs, next_obs (B, obs_size), action (B, action_size), n_step_* (B,), annotations


def torso(input_size: int, hidden: int = 256) -> nn.Sequential:
    """Linear-LayerNorm-tanh, then two Linear-ELU [sizes: paper A.2; layers and initial weights: Acme]."""
    linears = [nn.Linear(size, hidden) for size in (input_size, hidden, hidden)]
    for linear in linears:
        limit = linear.out_features**-0.5  # uniform with variance (1/3) / fan-out
        nn.init.uniform_(linear.weight, -limit, limit)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(linears[0], nn.LayerNorm(hidden), nn.Tanh(), linears[1], nn.ELU(), linears[2], nn.ELU())


def head(input_size: int, output_size: int, scale: float) -> nn.Linear:
    """Output layer: normal weights of variance scale / fan-in, then cut at two standard deviations; zero biases [Acme].

    In Acme's policy head the weights have that variance after the cut, and so 14 % more deviation than here.
    """
    linear, std = nn.Linear(input_size, output_size), (scale / input_size) ** 0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(linear.bias)
    return linear


class Policy(nn.Module):
    """pi(s): obs (B, obs_size) -> action (B, action_size) in (-1, 1), initially near 0."""

    def __init__(self, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.torso, self.head = torso(obs_size), head(256, action_size, 1e-4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.head(self.torso(obs)))


class Critic(nn.Module):
    """Z(s, a): obs (B, obs_size), action (B, action_size) -> logits (B, num_atoms) over the returns `atoms`."""

    def __init__(self, obs_size: int, action_size: int, num_atoms: int, v_min: float, v_max: float) -> None:
        super().__init__()
        self.torso, self.head = torso(obs_size + action_size), head(256, num_atoms, 1.0)
        self.register_buffer("atoms", torch.linspace(v_min, v_max, num_atoms), persistent=False)

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.head(self.torso(torch.cat([obs, action], -1)))

    def q_value(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q(s, a) = E[Z(s, a)], (B,)."""
        return (self(obs, action).softmax(-1) * self.atoms).sum(-1)


class Agent:
    """Networks, targets, the anchors pi_0 and pi_{k-1}, optimisers and sampler. A checkpoint holds all of them."""

    def __init__(self, args: Args, env: EnvSpec, device: torch.device) -> None:
        torch.manual_seed(rollouts.stream_seed(args.seed, rollouts.WEIGHTS))
        self.policy = Policy(env.obs_size, env.action_size).to(device)
        self.critic = Critic(env.obs_size, env.action_size, args.num_atoms, args.v_min, args.v_max).to(device)
        self.target_policy, self.target_critic = copy.deepcopy(self.policy), copy.deepcopy(self.critic)
        self.bc_policy, self.previous_policy = copy.deepcopy(self.policy), copy.deepcopy(self.policy)  # pi_0, pi_{k-1}
        for network in (self.target_policy, self.target_critic, self.bc_policy, self.previous_policy):
            network.requires_grad_(False)
        # Cloning has its own Adam: its step size is different, and the policy's Adam starts cycle 1 with fresh moments.
        self.bc_optimizer = torch.optim.Adam(self.policy.parameters(), args.bc_learning_rate, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), args.learning_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)
        self.sampler = torch.Generator(device).manual_seed(rollouts.stream_seed(args.seed, rollouts.SAMPLING))

    def copy_targets(self) -> None:
        """Copy both networks into their targets."""
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.target_critic.load_state_dict(self.critic.state_dict())


# ======== losses


def project(atoms: torch.Tensor, probs: torch.Tensor, returns: torch.Tensor, discounts: torch.Tensor) -> torch.Tensor:
    """Project the distribution of R + gamma^m Z onto the atoms (Bellemare et al. 2017, equation 7).

    Args:
        atoms: (A,), evenly spaced. probs: (B, A), Z's on the atoms. returns, discounts: (B,), R and gamma^m.

    Returns:
        (B, A): each target's mass, split between its two neighbouring atoms, or on the end atom if it lies beyond.
    """
    step = atoms[1] - atoms[0]
    target = returns[:, None] + discounts[:, None] * atoms  # (B, A)
    position = ((target - atoms[0]) / step).clamp(0, len(atoms) - 1)
    lower = position.floor().clamp(max=len(atoms) - 2)
    upper_mass = probs * (position - lower)
    index = lower.long()
    projected = torch.zeros_like(probs).scatter_add(1, index, probs - upper_mass)
    return projected.scatter_add(1, index + 1, upper_mass)


def critic_loss(critic: Critic, target_policy: Policy, target_critic: Critic, batch: Batch) -> torch.Tensor:
    """Equation 2 with a categorical critic: mean cross-entropy from the projected n-step target to Z(s, a), 0-dim."""
    with torch.no_grad():
        next_action = target_policy(batch["next_obs"])
        probs = target_critic(batch["next_obs"], next_action).softmax(-1)
        target = project(critic.atoms, probs, batch["n_step_return"], batch["n_step_discount"])
    return F.cross_entropy(critic(batch["obs"], batch["action"]), target)


def action_gradient(
    critic: Critic, obs: torch.Tensor, action: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q(s, a) (B,), and dQ/da (B, action_size) with each sample's norm scaled down to <= clip; both detached."""
    q = critic.q_value(obs, action)
    return q.detach(), clip_norm(torch.autograd.grad(q.sum(), action)[0], clip)


def clip_norm(vectors: torch.Tensor, clip: float) -> torch.Tensor:
    """Scale each row of (B, D) down to L2 norm <= clip [Acme]."""
    return vectors * (clip / vectors.norm(dim=-1, keepdim=True)).clamp(max=1)


class Progress(typing.NamedTuple):
    """Fraction of learner steps done, over all cycles and in this one; tensors, so compiled code isn't recompiled."""

    total: torch.Tensor
    cycle: torch.Tensor


# ======== what is this script's own: the teacher's part in it

NEEDS = "demonstrations"  # what it needs of a teacher: nothing, demonstrations, actions or action_gradients


def method(args: Args) -> str:
    """The method's name. The run's name adds every other flag that isn't at its default."""
    return "bc_reg" if args.method == "bc_reg" else f"{args.method}:{args.decay_rate:g}"


def own_defaults(args: Args) -> dict[str, float]:
    """This script's flags whose defaults depend on other flags: none."""
    return {}


def queries(args: Args, replay: Replay, learner_steps: int) -> dict[str, int]:
    """Teacher queries for annotations and for learning, after `learner_steps` updates."""
    return {"states_annotated": 0, "gradients_asked": 0}  # it uses demonstrations only


def alpha(args: Args, progress: Progress, rate: float) -> torch.Tensor:
    """Section 3.3's exponential decay from 1: down to 0 when learning ends, or plain e^(-rate n / T). 0-dim."""
    done = progress.cycle if args.alpha_per_cycle else progress.total
    if args.alpha_form == "plain":
        return torch.exp(-rate * done)
    fade = torch.expm1(-rate * (1 - done)) / torch.expm1(torch.full_like(done, -rate))  # from 1 to 0
    return torch.exp(-rate * done) * fade


def annotate(args: Args, replay: Replay, bc_policy: Policy, previous_policy: Policy, teacher: Teacher | None) -> None:
    """Add the column `anchor`: pi_0(s) once per state, or pi_{k-1}(s), recomputed in every cycle."""
    if args.method == "between":
        replay.annotate("anchor", previous_policy, batches="all")
    else:
        replay.annotate("anchor", bc_policy, batches="new")


def policy_loss(
    args: Args, policy: Policy, critic: Critic, teacher: Teacher | None, batch: Batch, progress: Progress
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Equation 3: -Q + lambda ||pi_0 - pi||^2, or 4 and 5: -(1 - alpha) Q + alpha ||anchor - pi||^2.

    Returns:
        A 0-dim loss whose gradient is the method's policy gradient, and 0-dim metrics.
    """
    action = policy(batch["obs"])
    q, dqda = action_gradient(critic, batch["obs"], action, args.dqda_clip)
    distance = (batch["anchor"] - action).square().sum(-1)  # (B,)
    if args.method == "bc_reg":
        q_weight, weight, metrics = 1.0, args.bc_weight, {}
    else:
        weight = alpha(args, progress, args.decay_rate)
        q_weight, metrics = 1 - weight, {"teacher/alpha": weight}
    loss = (-q_weight * (dqda * action).sum(-1) + weight * distance).mean()
    metrics |= {"losses/policy_loss": (-q_weight * q + weight * distance).mean(), "losses/q_value": q.mean()}
    return loss, metrics | {"teacher/distance": distance.mean()}


# ======== learning


def compute_gradients(
    args: Args, agent: Agent, teacher: Teacher | None, batch: Batch, progress: Progress
) -> dict[str, torch.Tensor]:
    """Compute both losses' gradients at the same parameters and batch; return metrics. `--compile` compiles this."""
    value_loss = critic_loss(agent.critic, agent.target_policy, agent.target_critic, batch)
    loss, metrics = policy_loss(args, agent.policy, agent.critic, teacher, batch, progress)
    (value_loss + loss).backward()  # neither loss reaches the other's network, so each gets its own gradient
    return {name: value.detach() for name, value in (metrics | {"losses/critic_loss": value_loss}).items()}


def optimizer_step(network: nn.Module, optimizer: torch.optim.Adam, max_grad_norm: float) -> None:
    """Clip the gradient's global norm and take one step."""
    nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def clone(args: Args, agent: Agent, demos: Replay, run: Run) -> None:
    """Behaviour cloning (section 3.2): minimise ||pi(s) - a*||^2 where a* is the teacher's noise-free action."""
    for step in run.steps(0, args.bc_steps, "cloning"):
        agent.bc_optimizer.param_groups[0]["lr"] = args.bc_learning_rate * (1 - step / args.bc_steps)
        batch = demos.sample(args.batch_size, agent.sampler)
        loss = (agent.policy(batch["obs"]) - batch["teacher_action"]).square().sum(-1).mean()
        loss.backward()
        optimizer_step(agent.policy, agent.bc_optimizer, args.max_grad_norm)
        if (step + 1) % 1_000 == 0:
            run.log(step + 1, {"losses/bc_loss": loss.detach()})
    for policy in (agent.bc_policy, agent.previous_policy, agent.target_policy):
        policy.load_state_dict(agent.policy.state_dict())


def pretrain_critic(args: Args, agent: Agent, demos: Replay, run: Run) -> None:
    """Policy evaluation of pi_0 on the demonstrations (section 3.2): equation 2 with pi_0 as the target policy."""
    for step in run.steps(args.bc_steps, args.bc_steps + args.critic_steps, "critic evaluation"):
        batch = demos.sample(args.batch_size, agent.sampler)
        loss = critic_loss(agent.critic, agent.target_policy, agent.target_critic, batch)
        loss.backward()
        optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        done = step + 1 - args.bc_steps
        if done % args.target_period == 0:
            agent.copy_targets()
        if done % 1_000 == 0:
            run.log(step + 1, {"losses/critic_evaluation_loss": loss.detach()})
    agent.copy_targets()


def learn(
    args: Args, agent: Agent, teacher: Teacher | None, replay: Replay, run: Run, gradients: Callable,
    first: int, last: int,
) -> None:  # fmt: skip
    """Take learner steps `first` to `last` - 1 on all batches so far. No GPU synchronisation except to log or save."""
    for n in run.steps(first, last, "learning"):
        batch = replay.sample(args.batch_size, agent.sampler)
        fractions = n / args.learner_steps, (n - first) / (last - first)
        progress = Progress(*(torch.full((), fraction, device=agent.sampler.device) for fraction in fractions))
        metrics = gradients(args, agent, teacher, batch, progress)
        optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        optimizer_step(agent.policy, agent.policy_optimizer, args.max_grad_norm)
        if (n + 1) % args.target_period == 0:
            agent.copy_targets()
        if (n + 1) % args.eval_every == 0 or n + 1 == args.learner_steps:
            run.log(n + 1, metrics, evaluate=agent.policy)


def diagnose(args: Args, agent: Agent, teacher: Teacher | None, episodes: list[Episode]) -> dict[str, float]:
    """Metrics of pi_{k-1} and its critic, computed from its deployment.

    `losses/overestimation` (the paper's explanation of the dip) is mean Q(s0, pi(s0)) minus the mean discounted return.
    `teacher/dqda_cosine` says how well the critic knows where to move: the cosine between the student's and the
    teacher's dQ/da at a = pi(s), on up to 4,096 evenly spaced states; the mean is weighted by the teacher's norm.
    """
    starts = torch.from_numpy(np.stack([episode.obs[0] for episode in episodes])).to(agent.sampler.device)
    with torch.no_grad():
        q = agent.critic.q_value(starts, agent.policy(starts)).mean().item()
    discounted = [episode.discounted_return(args.gamma) for episode in episodes]
    if not args.v_min <= min(discounted) <= max(discounted) <= args.v_max:
        told = f"discounted returns are from {min(discounted):.4g} to {max(discounted):.4g}, which --v-min and --v-max"
        warnings.warn(f"{told} must enclose, else the critic can't learn them", stacklevel=2)
    metrics = {"deploy/episodic_return": np.mean([episode.episodic_return for episode in episodes])}
    metrics["losses/overestimation"] = q - float(np.mean(discounted))
    if teacher is not None and teacher.gives_gradients:
        states = np.concatenate([episode.obs[:-1] for episode in episodes])
        obs = torch.from_numpy(states[:: -(-len(states) // 4096)]).to(agent.sampler.device)
        action = agent.policy(obs).detach().requires_grad_()
        student = torch.autograd.grad(agent.critic.q_value(obs, action).sum(), action)[0]
        guidance = teacher.action_gradient(obs, action.detach())
        weight = guidance.norm(dim=-1)
        cosine = (weight * F.cosine_similarity(student, guidance, dim=-1)).sum() / weight.sum().clamp(min=1e-12)
        metrics |= {"teacher/dqda_cosine": cosine, "teacher/diagnosis_queries": len(obs)}
    return metrics


# ======== algorithm 1


def main(args: Args) -> Path:
    """Algorithm 1; returns the run's folder. A resumed run re-enters at `run.cycle` and `run.step`."""
    args, env, device, teacher = launch.setup(args, resolve, NEEDS)
    with Run(args, launch.run_name(args, env, method, resolve), env, teacher, __file__) as run:
        agent = Agent(args, env, device)
        sizes = (env.obs_size, env.action_size, args.n_step, args.gamma, device)
        replay = Replay(capacity(args, env), *sizes)
        gradients = launch.compiled(compute_gradients, device) if args.compile else compute_gradients
        if args.demos_in_replay:
            replay.append(*run.demonstrations())
        run.restore(agent, replay)  # also reads back the batches of past cycles

        # ---- cycle 0: clone the teacher, then let the critic learn the clone's values (section 3.2)
        if run.cycle == 0:
            if teacher is not None:
                demos = Replay(args.demo_episodes * env.episode_length, *sizes)
                demos.append(*run.demonstrations())
                demos.annotate("teacher_action", teacher.action)  # a*; the executed actions have noise
                clone(args, agent, demos, run)
                pretrain_critic(args, agent, demos, run)
                del demos
                run.log(args.bc_steps + args.critic_steps, run.score_teacher())
            run.end_cycle(agent.policy, agent.critic)

        # ---- cycles 1 to N: deploy a fixed policy, then learn from all batches so far (algorithm 1)
        for cycle in range(run.cycle, args.num_cycles + 1):
            first = learned_after(args, run.actor_step)
            # Deploy previous_policy: in a run that is resumed mid-cycle, `policy` has already been updated.
            episodes, annotations = run.deploy(agent.previous_policy, args.sigma, deployed_after(args, env, cycle))
            replay.append(episodes, annotations)
            with run.timed("annotating"):
                annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
            if run.step == first:  # else this line was written before the run was resumed
                run.log(first, diagnose(args, agent, teacher, episodes), agent.policy if cycle == 1 else None)
            learn(args, agent, teacher, replay, run, gradients, first, learned_after(args, run.actor_step))
            agent.previous_policy.load_state_dict(agent.policy.state_dict())
            run.end_cycle(agent.policy, agent.critic)
        return run.report(**queries(args, replay, run.step))


if __name__ == "__main__":
    launch.launch(Args, main)
