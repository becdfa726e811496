"""Growing-batch D4PG with teacher actions (Emedom-Nnamdi et al. 2023, equations 6 and 7).

The teacher says once for each collected state what it would have done, a*. The policy is held to a* with a weight that
decays to 0, and to the policy deployed last (row `ta:r`), or to a* wherever the critic finds it better (`ta_qf`, the
Q-filter). Everything else is gbrl_d4pg.py; a diff of the two is the method.

    python gbrl_teacher_action.py --env-id cartpole-swingup --teacher expert --num-cycles 4
"""

import copy
import time
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, envs, run, teachers
from common.envs import EnvSpec
from common.replay import Replay
from common.rollouts import Episode
from common.run import Run
from common.teachers import Teacher


@dataclass
class Args:
    """The flags. Each help text ends with the source of its default."""

    # ---- this script's own: its row, what it asks of a teacher, its flags
    NEEDS: typing.ClassVar[str] = "actions"
    method: typing.Literal["ta", "ta_qf"] = "ta_qf"
    """equation 6, or 7 with the Q-filter [paper 3.4]"""
    beta: float | None = None
    """weight of ||pi_{k-1} - pi||^2; default 5 in equation 6, 0 with the Q-filter [paper 4.2 and eq. 7, literally]"""
    beta_decay: bool = False
    """let beta be alpha's schedule with the rate --beta instead, from 1 down to 0 [ours: the subscript in beta_k]"""
    decay_rate: float = 1.0
    """rate r of alpha's decay [paper 4.2: 1 and 5]"""
    alpha_form: typing.Literal["zero_at_end", "plain"] = "zero_at_end"
    """(e^(-r n/T) - e^-r) / (1 - e^-r), which reaches 0, or e^(-r n/T), which doesn't [paper 4.2: reaches 0]"""
    alpha_per_cycle: bool = False
    """restart alpha in every cycle, as Algorithm 1's index j could be read [paper 4.2: counts all learner steps]"""

    @property
    def row(self) -> str:
        """The row of the README's table that these flags run."""
        name = "ta_qf" if self.method == "ta_qf" else f"ta:{self.decay_rate:g}"
        if self.beta not in (None, self.default_beta):
            name += f",beta:{self.beta:g}"
        return run.row_name(name, self, (*READINGS, "beta_decay", "alpha_form", "alpha_per_cycle"))

    @property
    def default_beta(self) -> float:
        """Equation 6's beta; equation 7 has no such term."""
        return 5.0 if self.method == "ta" else 0.0

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The metric keys that only this row logs."""
        return ("teacher/q_filter_rate" if self.method == "ta_qf" else "teacher/alpha", "teacher/distance")

    def resolve_own(self) -> None:
        """Check this script's own flags, and fill in what depends on others. Raises UserError."""
        if not self.decay_rate > 0:
            raise UserError(f"--decay-rate must be positive, not {self.decay_rate}.")
        if self.beta is None:
            self.beta = self.default_beta
        if self.beta < 0 or (self.beta_decay and self.beta == 0):
            raise UserError(f"--beta must not be negative, nor 0 as a rate: {self.beta}.")

    def progress(self, step: int, cycle_start: int, cycle_steps: int) -> float:
        """What alpha is a function of: n / T for learner step n of T, or the same within the cycle."""
        return (step - cycle_start) / cycle_steps if self.alpha_per_cycle else step / self.learner_steps

    def alpha(self, progress: torch.Tensor, rate: float) -> torch.Tensor:
        """Section 3.3's exponential decay from 1: down to 0 at progress 1, or plain e^(-rate progress). All 0-dim."""
        if self.alpha_form == "plain":
            return torch.exp(-rate * progress)
        fade = torch.expm1(-rate * (1 - progress)) / torch.expm1(torch.full_like(progress, -rate))  # from 1 to 0
        return torch.exp(-rate * progress) * fade

    def queries(self, num_transitions: int) -> tuple[int, int]:
        """How many states the teacher annotated, and how many action gradients it was asked for."""
        return num_transitions, 0

    # ---- shared by the four scripts
    env_id: str = "cartpole-swingup"
    """dm_control suite task as domain-task [paper 4.1 has six]"""
    teacher: str = "expert"
    """expert, mid, PATH.pt, FILE.py:Class, or none where the script needs no teacher [paper 4.2]"""
    num_cycles: int = 4
    """deployments N; the paper has 4 and 8 [paper A.2]"""
    seed: int = 1
    """seed of everything but the demonstrations, which have their teacher's [ours]"""
    scale: float = 1.0
    """fraction of the paper's actor and learner steps, demonstrations (at least 100) and critic steps [ours]"""
    actor_steps: int | None = None
    """environment steps over all cycles; default 2,000,000 x scale [paper A.2]"""
    learner_steps: int | None = None
    """updates over all cycles; default actor steps x samples-per-insert / batch-size [paper A.2]"""
    samples_per_insert: float = 32.0
    """transitions sampled per transition collected [paper A.2]"""
    demo_episodes: int | None = None
    """demonstrations; default 1,000 x scale, at least 100 [paper 4.2; the minimum is ours]"""
    demo_sigma: float = 0.3
    """exploration noise in the demonstrations, as wherever an agent acts; 0 for none [paper A.2, Acme]"""
    demo_dir: str = "demos"
    """folder where demonstrations are cached [ours]"""
    demos_in_replay: bool = False
    """add the demonstrations to the growing batch as batch 0; the paper's union starts at D_1 [ours]"""
    bc_steps: int = 30_000
    """behaviour-cloning steps, at any scale [ours, measured]"""
    bc_learning_rate: float = 1e-3
    """Adam's step size in behaviour cloning, falling linearly to 0 [ours, measured]"""
    critic_steps: int | None = None
    """critic-evaluation steps on the demonstrations, 0 to skip; default 100,000 x scale, at least 10,000 [ours]"""
    buffer_size: int = 10_000_000
    """most transitions the replay may hold; nothing is evicted [paper A.2]"""
    batch_size: int = 256
    """transitions per update [paper A.2]"""
    learning_rate: float = 1e-4
    """Adam's step size for both networks [paper A.2, printed 1x10^4]"""
    gamma: float = 0.99
    """discount per step [Acme]"""
    n_step: int = 5
    """steps of return before the bootstrap [paper A.2]"""
    num_atoms: int = 51
    """atoms of the categorical critic [paper A.2]"""
    v_min: float = -150.0
    """lowest atom [paper A.2]"""
    v_max: float = 150.0
    """highest atom [paper A.2]"""
    sigma: float = 0.3
    """standard deviation of the exploration noise; the paper prints N(0, 3) [Acme]"""
    target_period: int = 100
    """learner steps between copies into the target networks [Acme]"""
    max_grad_norm: float = 40.0
    """clip of each network's gradient norm [Acme]"""
    dqda_clip: float = 1.0
    """clip of each sample's action-gradient norm, inf to switch off [Acme]"""
    eval_every: int = 100
    """learner steps between evaluations and rows of metrics [paper 4.2]"""
    eval_episodes: int = 1
    """noise-free episodes per evaluation, 0 to 10 [ours]"""
    report_episodes: int = 20
    """noise-free episodes for each cycle's line in the report [ours]"""
    keep_every: int = 1
    """cycles between kept batches, policies and checkpoints; raise it for thousands of cycles [ours]"""
    checkpoint_every: int = 5_000
    """steps between checkpoints inside a phase [ours]"""
    pretrained: str | None = None
    """folder of a run whose clone and critic to start from instead of making the very same again [ours]"""
    run_dir: str | None = None
    """the run's folder: started there, or continued if it holds a run; default runs/... [ours]"""
    resume: str | None = None
    """folder of a run to continue exactly, with its own flags [ours]"""
    num_workers: int = 2
    """processes for deployment and evaluation, 0 for none; the data is the same for any number [ours]"""
    ray_address: str | None = None
    """address of a Ray cluster that runs the episodes, or "auto" for this machine's; default: processes here [ours]"""
    torch_threads: int = 1
    """threads of the learner; another number gives other last bits [ours]"""
    torch_deterministic: bool = True
    """use deterministic algorithms only [CleanRL]"""
    cuda: bool = True
    """learn on the GPU if there is one [CleanRL]"""
    compile: bool = False
    """compile the update with torch.compile [ours]"""
    track: bool = False
    """mirror the metrics to wandb [CleanRL]"""
    wandb_project_name: str = "growing-batch-rl"
    """wandb project [ours]"""
    wandb_entity: str | None = None
    """wandb entity [CleanRL]"""
    capture_video: bool = False
    """film one episode of each kept policy [CleanRL]"""

    def resolved(self, env: EnvSpec) -> "Args":
        """Check every flag and fill in the numbers that depend on others. Raises UserError."""
        run.check_numbers(self)
        if self.num_atoms < 2 or not self.v_min < self.v_max:
            raise UserError(f"{self.num_atoms} atoms from {self.v_min} to {self.v_max}: need 2 or more, v-min < v-max.")
        if self.gamma > 1 or self.eval_episodes > 10:
            raise UserError(f"--gamma {self.gamma} is above 1, or --eval-episodes {self.eval_episodes} above 10.")
        args = copy.copy(self)
        args.resolve_own()
        args.actor_steps = self.actor_steps or round(2_000_000 * self.scale)
        args.learner_steps = self.learner_steps or int(args.actor_steps * self.samples_per_insert / self.batch_size)
        args.demo_episodes = self.demo_episodes or max(100, round(1_000 * self.scale))
        args.critic_steps = max(10_000, round(100_000 * self.scale)) if self.critic_steps is None else self.critic_steps
        num_episodes = round(args.actor_steps / env.episode_length)
        if not 0 < args.num_cycles <= min(num_episodes, args.learner_steps):
            raise UserError(
                f"--num-cycles {args.num_cycles}: a cycle needs an episode and an update or more; the budget has "
                f"{num_episodes} episodes and {args.learner_steps} updates."
            )
        needed = (num_episodes + args.demos_in_replay * args.demo_episodes) * env.episode_length
        if needed > args.buffer_size:
            raise UserError(f"--buffer-size {args.buffer_size} is less than the {needed} transitions of this run.")
        return args


METRICS = ("eval/episodic_return", "deploy/episodic_return", "teacher/episodic_return", "losses/bc_loss")
METRICS += ("losses/critic_loss", "losses/policy_loss", "losses/q_value", "losses/overestimation")
METRICS += ("teacher/dqda_cosine", "charts/SPS", "charts/UPS")
READINGS = ("demo_sigma", "sigma", "demos_in_replay", "dqda_clip")  # choices that show in the row's name unless default
# Flags that have no part in cloning and critic evaluation, so that --pretrained may come from a run with others.
AFTER_PRETRAINING = ("num_cycles", "scale", "actor_steps", "learner_steps", "samples_per_insert", "demos_in_replay")
AFTER_PRETRAINING += ("buffer_size", "sigma", "dqda_clip", "eval_every", "eval_episodes", "keep_every", "compile")
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
    """A last layer: normal weights of variance scale / fan-in, cut at two standard deviations, zero biases [Acme]."""
    linear, std = nn.Linear(input_size, output_size), (scale / input_size) ** 0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(linear.bias)
    return linear


class Policy(nn.Module):
    """pi(s): obs (B, obs_size) -> action (B, action_size) in (-1, 1), near 0 at first."""

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
    """The student: networks, targets, the policies it may be held to, and optimisers."""

    def __init__(self, args: Args, env: EnvSpec, device: torch.device) -> None:
        self.policy = Policy(env.obs_size, env.action_size).to(device)
        self.critic = Critic(env.obs_size, env.action_size, args.num_atoms, args.v_min, args.v_max).to(device)
        self.target_policy, self.target_critic = copy.deepcopy(self.policy), copy.deepcopy(self.critic)
        self.bc_policy, self.previous_policy = copy.deepcopy(self.policy), copy.deepcopy(self.policy)  # pi_0, pi_{k-1}
        for network in (self.target_policy, self.target_critic, self.bc_policy, self.previous_policy):
            network.requires_grad_(False)
        self.bc_optimizer = torch.optim.Adam(self.policy.parameters(), args.bc_learning_rate, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), args.learning_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)

    def copy_targets(self) -> None:
        """Copy both networks into their targets."""
        self.target_policy.load_state_dict(self.policy.state_dict())
        self.target_critic.load_state_dict(self.critic.state_dict())


def project(atoms: torch.Tensor, probs: torch.Tensor, returns: torch.Tensor, discounts: torch.Tensor) -> torch.Tensor:
    """Project the distribution of R + gamma^m Z onto the atoms (Bellemare et al. 2017, equation 7).

    Args:
        atoms: (A,), evenly spaced. probs: (B, A), of Z on the atoms. returns, discounts: (B,), R and gamma^m.

    Returns:
        (B, A): each target's mass is split between its two neighbouring atoms, or goes to the end of the support.
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
    """Equation 2 with a categorical critic: cross-entropy from the projected n-step target to Z(s, a), a 0-dim mean."""
    with torch.no_grad():
        next_action = target_policy(batch["next_obs"])
        probs = target_critic(batch["next_obs"], next_action).softmax(-1)
        target = project(critic.atoms, probs, batch["n_step_return"], batch["n_step_discount"])
    return F.cross_entropy(critic(batch["obs"], batch["action"]), target)


def action_gradient(
    critic: Critic, obs: torch.Tensor, action: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q(s, a), (B,), and dQ/da, (B, action_size), each sample's scaled down to norm <= clip; neither has a graph."""
    q = critic.q_value(obs, action)
    return q.detach(), clip_norm(torch.autograd.grad(q.sum(), action)[0], clip)


def clip_norm(vectors: torch.Tensor, clip: float) -> torch.Tensor:
    """Scale each row of (B, D) down to L2 norm <= clip [Acme]."""
    return vectors * (clip / vectors.norm(dim=-1, keepdim=True)).clamp(max=1)


def annotate(args: Args, replay: Replay, bc_policy: Policy, previous_policy: Policy, teacher: Teacher | None) -> None:
    """Add the columns `teacher_action`, a* once per state, and `previous_action`, pi_{k-1}(s) anew in every cycle."""
    replay.annotate("teacher_action", teacher.action, batches="new")
    replay.annotate("previous_action", previous_policy, batches="all")


def policy_loss(
    args: Args, policy: Policy, critic: Critic, teacher: Teacher | None, batch: Batch, progress: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Equation 6, and 7 with delta(s) for alpha: -(1 - alpha) Q + beta ||pi_{k-1} - pi||^2 + alpha ||a* - pi||^2.

    Returns:
        A 0-dim loss whose gradient is the row's policy gradient, and 0-dim metrics.
    """
    action = policy(batch["obs"])
    q, dqda = action_gradient(critic, batch["obs"], action, args.dqda_clip)
    distance = (batch["teacher_action"] - action).square().sum(-1)  # (B,)
    if args.method == "ta_qf":
        with torch.no_grad():
            weight = (critic.q_value(batch["obs"], batch["teacher_action"]) >= q).float()  # delta(s), (B,)
        metrics = {"teacher/q_filter_rate": weight.mean()}
    else:
        weight = args.alpha(progress, args.decay_rate)
        metrics = {"teacher/alpha": weight}
    beta = args.alpha(progress, args.beta) if args.beta_decay else args.beta
    penalty = beta * (batch["previous_action"] - action).square().sum(-1) + weight * distance
    loss = (-(1 - weight) * (dqda * action).sum(-1) + penalty).mean()
    metrics |= {"losses/policy_loss": (-(1 - weight) * q + penalty).mean(), "losses/q_value": q.mean()}
    return loss, metrics | {"teacher/distance": distance.mean()}


def gradients(
    args: Args, agent: Agent, teacher: Teacher | None, batch: Batch, progress: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Gradients of both losses at the same parameters and batch, and metrics. This is what `--compile` compiles."""
    value_loss = critic_loss(agent.critic, agent.target_policy, agent.target_critic, batch)
    loss, metrics = policy_loss(args, agent.policy, agent.critic, teacher, batch, progress)
    critic_gradients = torch.autograd.grad(value_loss, tuple(agent.critic.parameters()))
    policy_gradients = torch.autograd.grad(loss, tuple(agent.policy.parameters()))
    metrics = {name: value.detach() for name, value in (metrics | {"losses/critic_loss": value_loss}).items()}
    return critic_gradients, policy_gradients, metrics


def apply_gradients(
    network: nn.Module, optimizer: torch.optim.Adam, grads: tuple[torch.Tensor, ...], clip: float
) -> torch.Tensor:
    """Clip the gradient's global norm and take one optimiser step; returns the norm before clipping, 0-dim."""
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        parameter.grad = grad
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return norm


def clone(args: Args, agent: Agent, demos: Replay, sampler: torch.Generator, keeper: Run) -> None:
    """Behaviour cloning (section 3.2): minimise ||pi(s) - a*||^2, a* what the teacher meant to do. Gives pi_0."""
    start = keeper.enter("cloning")
    if start is None:
        return
    for step in keeper.steps(start, args.bc_steps, "cloning"):
        agent.bc_optimizer.param_groups[0]["lr"] = args.bc_learning_rate * (1 - step / args.bc_steps)
        batch = demos.sample(args.batch_size, sampler)
        loss = (agent.policy(batch["obs"]) - batch["teacher_action"]).square().sum(-1).mean()
        grads = torch.autograd.grad(loss, tuple(agent.policy.parameters()))
        norm = apply_gradients(agent.policy, agent.bc_optimizer, grads, args.max_grad_norm)
        keeper.watch(loss.detach() + norm, step)
        if (step + 1) % 1_000 == 0:
            keeper.clock["pretrain_step"] = step + 1
            keeper.log({"losses/bc_loss": loss})
    for policy in (agent.bc_policy, agent.previous_policy, agent.target_policy):
        policy.load_state_dict(agent.policy.state_dict())


def evaluate_clone(args: Args, agent: Agent, demos: Replay, sampler: torch.Generator, keeper: Run) -> None:
    """Policy evaluation of pi_0 on the demonstrations (section 3.2): equation 2 with pi_0 as the target policy."""
    start = keeper.enter("critic evaluation")
    if start is None:
        return
    for step in keeper.steps(start, args.critic_steps, "critic evaluation"):
        batch = demos.sample(args.batch_size, sampler)
        loss = critic_loss(agent.critic, agent.target_policy, agent.target_critic, batch)
        grads = torch.autograd.grad(loss, tuple(agent.critic.parameters()))
        norm = apply_gradients(agent.critic, agent.critic_optimizer, grads, args.max_grad_norm)
        keeper.watch(loss.detach() + norm, step)
        if (step + 1) % args.target_period == 0:
            agent.target_critic.load_state_dict(agent.critic.state_dict())
        if (step + 1) % 1_000 == 0:
            keeper.clock["pretrain_step"] = args.bc_steps + step + 1
            keeper.log({"losses/critic_loss": loss})
    agent.copy_targets()


def learn(
    args: Args, agent: Agent, teacher: Teacher | None, replay: Replay, sampler: torch.Generator, keeper: Run,
    compute: type(gradients), start: int, cycle_start: int, cycle_steps: int,
) -> None:  # fmt: skip
    """Take the cycle's learner steps from `start` on, on all batches so far. Only log points wait for the device."""
    began = time.perf_counter()
    for step in keeper.steps(start, cycle_steps, "learning"):
        n = cycle_start + step
        batch = replay.sample(args.batch_size, sampler)
        progress = torch.full((), args.progress(n, cycle_start, cycle_steps), device=sampler.device)
        critic_gradients, policy_gradients, metrics = compute(args, agent, teacher, batch, progress)
        norm = apply_gradients(agent.critic, agent.critic_optimizer, critic_gradients, args.max_grad_norm)
        norm = norm + apply_gradients(agent.policy, agent.policy_optimizer, policy_gradients, args.max_grad_norm)
        keeper.watch(norm + metrics["losses/critic_loss"] + metrics["losses/policy_loss"], step)
        if (n + 1) % args.target_period == 0:
            agent.copy_targets()
        keeper.clock["learner_step"] = n + 1
        if (n + 1) % args.eval_every == 0 or n + 1 == args.learner_steps:
            rate = (step + 1 - start) / (time.perf_counter() - began)
            keeper.log(metrics | {"charts/UPS": rate}, keeper.evaluate(agent.policy))


def overestimation(agent: Agent, episodes: list[Episode], gamma: float, device: torch.device) -> float:
    """Mean of Q(s0, pi(s0)) minus the discounted return that the deployment of that policy got from s0."""
    obs = torch.from_numpy(np.stack([episode.obs[0] for episode in episodes])).to(device)
    with torch.no_grad():
        q = agent.critic.q_value(obs, agent.policy(obs)).mean().item()
    return q - float(np.mean([episode.discounted_return(gamma) for episode in episodes]))


def dqda_cosine(agent: Agent, teacher: Teacher, episodes: list[Episode], device: torch.device) -> float:
    """Cosine between the student's and the teacher's dQ/da at a = pi(s), a mean weighted by the teacher's norm.

    It is taken on up to 4,096 deployed states, evenly spread over all: how well the critic knows where to move.
    """
    states = np.concatenate([episode.obs[:-1] for episode in episodes])
    obs = torch.from_numpy(states[:: -(-len(states) // 4096)]).to(device)
    action = agent.policy(obs).detach().requires_grad_()
    student = torch.autograd.grad(agent.critic.q_value(obs, action).sum(), action)[0]
    guidance = teacher.action_gradient(obs, action.detach())
    weight = guidance.norm(dim=-1)
    return ((weight * F.cosine_similarity(student, guidance, dim=-1)).sum() / weight.sum().clamp(min=1e-12)).item()


def main(args: Args) -> Path:
    """Clone, evaluate the clone, then deploy and learn for every cycle; returns the run folder."""
    env = envs.spec(args.env_id)
    given, args = args, args.resolved(env)
    device = run.configure_torch(args)
    teacher = teachers.load(args.teacher, env, args.NEEDS, device)
    num_episodes = round(args.actor_steps / env.episode_length)
    with Run(given, args, env, teacher, METRICS + args.own_metrics, AFTER_PRETRAINING, __file__) as keeper:
        torch.manual_seed(run.stream_seed(args.seed, run.WEIGHTS))
        agent = Agent(args, env, device)
        sampler = torch.Generator(device).manual_seed(run.stream_seed(args.seed, run.SAMPLING))
        keeper.track(**vars(agent), sampler=sampler)
        compute = keeper.compiled(gradients, device) if args.compile else gradients
        sizes = (env.obs_size, env.action_size, args.n_step, args.gamma, device)
        max_episodes = num_episodes + args.demos_in_replay * args.demo_episodes
        replay = Replay(max_episodes * env.episode_length, max_episodes, *sizes)
        if teacher is not None and (args.demos_in_replay or not keeper.pretrained):
            episodes = keeper.demonstrations(teacher)
            demos = Replay(len(episodes) * env.episode_length, len(episodes), *sizes)
            demos.append(episodes)
            demos.annotate("teacher_action", teacher.action)  # a*, where the executed action has noise
            if args.demos_in_replay:
                replay.append(episodes)
            clone(args, agent, demos, sampler, keeper)
            evaluate_clone(args, agent, demos, sampler, keeper)
            keeper.log({"teacher/episodic_return": np.mean(keeper.score(keeper.dir / "teacher.json", teacher.action))})
            del episodes, demos
        support = (args.num_atoms, args.v_min, args.v_max)
        keeper.keep_policy(0, agent.policy, agent.critic, support)
        batch_episodes = run.split(num_episodes, args.num_cycles)
        batch_steps = run.split(args.learner_steps, args.num_cycles)
        for cycle in range(1, args.num_cycles + 1):
            start = keeper.enter(f"cycle {cycle}", checkpoint=keeper.kept(cycle - 1))
            episodes = keeper.deploy(cycle, agent.previous_policy, args.sigma, batch_episodes[cycle - 1])
            replay.append(episodes)
            cycle_start, cycle_steps = sum(batch_steps[: cycle - 1]), batch_steps[cycle - 1]
            keeper.clock.update(cycle=cycle, learner_step=cycle_start, pretrain_step=None)
            keeper.clock["actor_step"] += sum(len(episode.reward) for episode in episodes)
            if start is None:  # the run had finished this cycle before it was continued
                continue
            with keeper.timed("annotating"):
                annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
            if start == 0:
                values = {"deploy/episodic_return": np.mean([episode.episodic_return for episode in episodes])}
                values |= {"losses/overestimation": overestimation(agent, episodes, args.gamma, device)}
                values |= {"charts/SPS": keeper.deploy_sps}
                if teacher is not None and teacher.gives_gradients:
                    values |= {"teacher/dqda_cosine": dqda_cosine(agent, teacher, episodes, device)}
                keeper.log(values, keeper.evaluate(agent.policy) if cycle == 1 else None)
            learn(args, agent, teacher, replay, sampler, keeper, compute, start, cycle_start, cycle_steps)
            agent.previous_policy.load_state_dict(agent.policy.state_dict())
            keeper.keep_policy(cycle, agent.policy, agent.critic, support)
        keeper.enter("the end")
        return keeper.finish(*args.queries(len(replay)))


if __name__ == "__main__":
    run.launch(Args, main)
