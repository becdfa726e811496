"""The growing batch and its n-step returns against a brute-force model, over many shapes of episodes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CPU

from common import replay as replay_module
from common.replay import Replay
from common.rollouts import Episode

quick = settings(derandomize=True, deadline=None, max_examples=60)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)  # of one batch of episodes
gammas = st.sampled_from([0.0, 0.5, 0.99, 1.0])


def window(reward, discount, t, n, gamma):
    """Return, discount and length of the n-step window from t, step by step."""
    total, factor, last = 0.0, 1.0, min(t + n, len(reward))
    for i in range(t, last):
        total += factor * reward[i]
        factor *= gamma * discount[i]
    return total, factor, last - t


def make_episode(number, length, rng):
    """Observation t of episode `number` is (number, t), so each is found again wherever it turns up."""
    obs = np.stack([np.full(length + 1, number), np.arange(length + 1)], 1).astype(np.float32)
    action = rng.uniform(-1, 1, (length, 3)).astype(np.float32)
    reward = rng.normal(size=length).astype(np.float32)
    return Episode(obs, action, reward, rng.choice([0.0, 0.5, 1.0], length).astype(np.float32))


def make_batches(shape, seed=0):
    rng, numbers = np.random.default_rng(seed), itertools.count()
    return [[make_episode(next(numbers), length, rng) for length in batch] for batch in shape]


def make_replay(shape, n=3, gamma=0.9, spare=0):
    """A replay with room for batches of episodes of these lengths, and `spare` transitions more."""
    return Replay(sum(map(sum, shape)) + spare, 2, 3, n, gamma, CPU)


def sample(replay, size, seed=0):
    return {name: c.numpy() for name, c in replay.sample(size, torch.Generator().manual_seed(seed)).items()}


@quick
@given(st.lists(lengths, min_size=1, max_size=3), st.integers(1, 6), gammas, st.integers(0, 3), st.integers(1, 40))
def test_each_sampled_row_is_a_true_transition(shape, n, gamma, spare, batch_size):
    replay, episodes = make_replay(shape, n, gamma, spare), []
    for batch in make_batches(shape):
        replay.append(batch)
        episodes += batch
        assert len(replay) == sum(len(episode.reward) for episode in episodes)
        rows = sample(replay, batch_size)
        for row in range(batch_size):
            number, t = rows["obs"][row].astype(int)
            episode = episodes[number]
            value, factor, steps = window(episode.reward, episode.discount, t, n, gamma)
            assert t < len(episode.reward) and np.array_equal(rows["action"][row], episode.action[t])
            assert rows["next_obs"][row].tolist() == [number, t + steps]
            assert rows["n_step_return"][row] == pytest.approx(value, rel=1e-6, abs=1e-6)
            assert rows["n_step_discount"][row] == pytest.approx(factor, rel=1e-6)


@quick
@given(st.lists(lengths, min_size=1, max_size=4), st.integers(1, 5))
def test_annotations_of_new_and_of_all_batches(shape, chunk):
    """An annotation is its state and the cycle in which it was asked for."""
    replay, batches, calls = make_replay(shape, spare=2), make_batches(shape), []
    states = [[tuple(obs) for episode in batch for obs in episode.obs[:-1].tolist()] for batch in batches]
    owner = [cycle for cycle, batch in enumerate(batches) for _ in batch]  # the batch of each episode

    def ask(obs):
        assert not torch.is_grad_enabled() and len(obs) <= chunk
        calls.append([tuple(row) for row in obs.tolist()])
        return torch.cat([obs, torch.full((len(obs), 1), float(cycle))], 1)

    def check(name, which, expected):
        calls.clear()
        replay.annotate(name, ask, which)
        assert [state for call in calls for state in call] == expected
        assert all(len({owner[int(number)] for number, _ in call}) == 1 for call in calls)  # none spans batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "ANNOTATE_CHUNK", chunk)
        for cycle, batch in enumerate(batches):
            replay.append(batch)
            so_far = [state for earlier in states[: cycle + 1] for state in earlier]
            check("once", "new", states[cycle])
            check("once", "new", [])
            check("always", "all", so_far)
            rows = sample(replay, 30)
            for name in ("once", "always"):
                assert np.array_equal(rows[name][:, :2], rows["obs"])  # an annotation stays with its own state
            assert rows["once"][:, 2].tolist() == [owner[int(number)] for number, _ in rows["obs"]]
            assert (rows["always"][:, 2] == cycle).all()
        check("late", "new", so_far)  # all batches are new to a column that comes late


def test_what_does_not_fit_is_refused_and_changes_nothing():
    first, second = make_batches([[3, 2], [4]])
    replay = make_replay([[3, 2], [4]], spare=-1)
    replay.append(first)
    before = sample(replay, 50)
    for batch in (second, []):
        with pytest.raises(ValueError, match="fit"):
            replay.append(batch)
    assert all(np.array_equal(column, before[name]) for name, column in sample(replay, 50).items())


def test_sampling_is_uniform_over_what_was_appended():
    shape = [[5, 9, 1], [1], [7, 4]]
    replay, generator = make_replay(shape, spare=5), torch.Generator().manual_seed(0)
    for batch in make_batches(shape):
        replay.append(batch)
    obs = torch.cat([replay.sample(30, generator)["obs"] for _ in range(100)])
    counts = torch.unique(obs, dim=0, return_counts=True)[1].double()
    expected, freedom = len(obs) / len(replay), len(replay) - 1
    assert len(counts) == len(replay)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square <= freedom + 6 * math.sqrt(2 * freedom) + 10  # passed by chance alone far below 1e-4
