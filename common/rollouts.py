"""Whole episodes with a fixed policy, as a pure function of (environment, policy, noise, seeds).

The numbers (stream, i) alone seed episode i of a stream. The ten episodes with the same i // 10 form a block: they step
in lockstep, and each forward pass has ten rows and runs on one thread. Matrix products round differently for other row
and thread counts, so fixed blocks make the data bit-identical in this process, in any number of workers, and on a
cluster of the same machine type. If a worker is lost, its block runs again.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from common import UserError
from common.envs import Env, EnvSpec, spec

BLOCK = 10  # episodes stepped in lockstep [ours: a forward pass costs the same for 1 and for 10 rows]
# A run's random streams. Demonstrations use their teacher's hash instead.
DEPLOY, EVALUATE, REPORT, WEIGHTS, SAMPLING, ANNOTATE = 1, 2, 3, 4, 5, 6

Actor = Callable[[torch.Tensor], torch.Tensor]  # obs (B, obs_size) -> action (B, action_size) in [-1, 1]


class Episode(NamedTuple):
    """One episode of T steps, float32. `discount` is the environment's, without gamma."""

    obs: np.ndarray  # (T + 1, obs_size)
    action: np.ndarray  # (T, action_size), as executed
    reward: np.ndarray  # (T,)
    discount: np.ndarray  # (T,)

    @property
    def episodic_return(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.reward.sum(dtype=np.float64))

    def discounted_return(self, gamma: float) -> float:
        """Sum of rewards, each weighted by the product of gamma and the environment's discounts before it."""
        weights = np.cumprod(np.concatenate([[1.0], gamma * self.discount[:-1].astype(np.float64)]))
        return float(weights @ self.reward)


def num_steps(episodes: Sequence[Episode]) -> int:
    """Environment steps of the episodes."""
    return sum(len(episode.reward) for episode in episodes)


def pack(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """Episodes as flat arrays: obs (sum of T + 1, .), action, reward, discount (sum of T, .) and length (E,)."""
    arrays = {name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in Episode._fields}
    return arrays | {"length": np.array([len(episode.reward) for episode in episodes], np.int64)}


def unpack(arrays: dict[str, np.ndarray]) -> list[Episode]:
    """The inverse of `pack`. Raises UserError where an array is missing or its length doesn't fit."""
    if missing := {*Episode._fields, "length"} - arrays.keys():
        raise UserError(f"a file of episodes lacks the arrays {sorted(missing)}.")
    ends, total = np.cumsum(arrays["length"]), int(arrays["length"].sum())
    fits = all(len(arrays[name]) == total for name in Episode._fields[1:]) and (arrays["length"] > 0).all()
    if not fits or arrays["length"].ndim != 1 or len(arrays["obs"]) != total + len(ends):
        raise UserError("a file of episodes has arrays whose lengths don't fit each other.")
    episodes = []
    for i, (start, end) in enumerate(zip(ends - arrays["length"], ends, strict=True)):
        rows = slice(start, end)
        obs = arrays["obs"][start + i : end + i + 1]
        episodes.append(Episode(obs, arrays["action"][rows], arrays["reward"][rows], arrays["discount"][rows]))
    return episodes


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread inside the block, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def episode_seeds(stream: tuple[int, ...], i: int) -> tuple[int, np.random.SeedSequence]:
    """Seeds of episode i of a stream: 32 bits for the environment's reset, and one for the exploration noise."""
    reset_seed, noise_seed = np.random.SeedSequence([*stream, i]).spawn(2)
    return int(reset_seed.generate_state(1)[0]), noise_seed


def exploration_noise(seed: np.random.SeedSequence, sigma: float, length: int, action_size: int) -> np.ndarray:
    """The noise of a whole episode, (length, action_size)."""
    return np.float32(sigma) * np.random.default_rng(seed).standard_normal((length, action_size), np.float32)


def stream_seed(seed: int, stream: int) -> int:
    """A 32-bit seed for one of a run's streams of random numbers."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


@functools.cache
def _envs(env_id: str) -> list[Env]:
    return [Env(env_id) for _ in range(BLOCK)]


def run_block(env_id: str, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range) -> list[Episode]:
    """Run the episodes `indices`, all of one block, in lockstep and return them in order.

    Args:
        sigma: standard deviation of the Gaussian noise added to each action before clipping to [-1, 1].
        stream: non-negative integers that name the stream of episodes.

    Raises:
        UserError: the actor returned a wrong shape, NaN or actions out of bounds, or the environment returned NaN.
    """
    torch.set_flush_denormal(True)  # as in the learner: a network's last bits depend on it
    env_spec, rows = spec(env_id), [i % BLOCK for i in indices]
    length, action_size = env_spec.episode_length, env_spec.action_size
    envs = [_envs(env_id)[row] for row in rows]
    obs = np.zeros((length + 1, BLOCK, env_spec.obs_size), np.float32)
    action = np.zeros((length, BLOCK, action_size), np.float32)
    reward, discount = np.zeros((2, length, BLOCK), np.float32)
    noise = np.zeros((length, BLOCK, action_size), np.float32)
    steps = np.zeros(BLOCK, int)
    for i, row, env in zip(indices, rows, envs, strict=True):
        reset_seed, noise_seed = episode_seeds(stream, i)
        env.reset(reset_seed, obs[0, row])
        noise[:, row] = exploration_noise(noise_seed, sigma, length, action_size)
    with one_thread(), torch.no_grad():  # a teacher of your own may need gradients
        running = list(zip(rows, envs, strict=True))
        for t in range(length):
            wanted = _act(actor, obs[t], env_spec)
            np.clip(wanted + noise[t], -1, 1, out=action[t])
            for row, env in tuple(running):
                reward[t, row], discount[t, row], last = env.step(action[t, row], obs[t + 1, row])
                steps[row] = t + 1
                if last:
                    running.remove((row, env))
            if not running:
                break
    episodes = []
    for i, row in zip(indices, rows, strict=True):
        n = steps[row]
        episode = Episode(obs[: n + 1, row], action[:n, row], reward[:n, row], discount[:n, row])
        for name, values in episode._asdict().items():
            if not np.isfinite(values).all():
                raise UserError(f"{env_id} returned a non-finite {name} in episode {i} of stream {stream}.")
        episodes.append(Episode(*(np.ascontiguousarray(values) for values in episode)))
    return episodes


def check_action(action: torch.Tensor, name: str) -> torch.Tensor:
    """Return the action, (B, action_size). Raises UserError with `name` if it isn't within [-1, 1]."""
    largest = action.abs().max().item()
    if not largest <= 1 + 1e-6:  # also true for NaN
        raise UserError(f"{name} returned entries of size {largest}, expected them in [-1, 1].")
    return action


def _act(actor: Actor, obs: np.ndarray, env: EnvSpec) -> np.ndarray:
    """The actor's actions for ten observations. Raises UserError with the actor's name if they are invalid."""
    if not np.isfinite(obs).all():
        raise UserError(f"{env.env_id} returned an observation that isn't finite: {obs[~np.isfinite(obs).all(1)]}.")
    action, name = actor(torch.from_numpy(obs)), type(getattr(actor, "__self__", actor)).__name__
    if action.shape != (BLOCK, env.action_size):
        raise UserError(f"{name} returned actions of shape {tuple(action.shape)}, expected {(BLOCK, env.action_size)}.")
    return check_action(action, name).detach().numpy()
