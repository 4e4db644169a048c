"""Replay: the ring against a plain list of transitions, over random lives of many episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax.replay import buffer
from tests.conftest import assert_finite

E, EPISODE, N_MAX, GAMMA = 2, 4, 3, 0.9
RINGS = (16, 23)
"""Capacities of the rings tried, in transitions; the second is no multiple of E."""

add = jax.jit(buffer.add)
windows = jax.jit(buffer.window, static_argnames="n_max")
sample = jax.jit(buffer.sample, static_argnames=("shape", "n_max"))
drop_oldest = jax.jit(buffer.drop_oldest)
policy_distance = jax.jit(buffer.policy_distance, static_argnames=("policy", "count", "kind"))


class ListReplay:
    """The same memory as Python lists: every row ever seen, and where the kept ones begin."""

    def __init__(self):
        self.rows = []
        self.left = 0

    def add(self, step, capacity, ring):
        """Append a row and forget those beyond the capacity."""
        self.rows.append(step)
        most = min(max(capacity // E, 1), -(-ring // E))
        self.left = max(self.left, len(self.rows) - most)

    def drop_oldest(self, transitions, least):
        """Forget whole rows, one at a time, as long as `least` transitions stay."""
        for _ in range(transitions // E):
            if (len(self.rows) - self.left - 1) * E < least:
                break
            self.left += 1

    def starts(self, n):
        """Rows whose window of n steps, and the row after it, are written."""
        return range(self.left, len(self.rows) - n)

    def window(self, row, column, n):
        """Return, bootstrap discount, next observation, and the states passed with their discounts."""
        total, passed = 0.0, []
        for k in range(n):
            step = self.rows[row + k]
            total += GAMMA**k * step.reward[column]
            reached = step.final_observation[column]
            if step.terminated[column]:
                return total, 0.0, reached, passed
            next_is_valid = self.rows[row + k + 1].finite[column]
            if step.truncated[column] or k == n - 1 or not next_is_valid:
                return total, GAMMA ** (k + 1), reached, passed
            passed.append((reached, GAMMA ** (k + 1)))
        raise AssertionError

    def kept(self):
        """Kept transitions, oldest first: (step, column)."""
        return [(step, e) for step in self.rows[self.left :] for e in range(E)]


def life(seed, length, ends=0.2, failures=0.1):
    """Random steps of E environments, with every observation ever reached unique."""
    rng = np.random.default_rng(seed)
    fresh = iter(range(1, 10**6))
    observe = lambda: np.array([[next(fresh), rng.normal()] for _ in range(E)], np.float32)
    current, steps = observe(), np.zeros(E, int)
    for _ in range(length):
        steps += 1
        reached = observe()
        finite = rng.random(E) >= failures
        terminated = (rng.random(E) < ends) & finite
        truncated = (steps >= EPISODE) & ~terminated & finite
        ended = terminated | truncated | ~finite
        bad = lambda x, finite=finite: np.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
        yield buffer.Step(
            observation=current,
            action=bad(rng.uniform(-1, 1, (E, 1)).astype(np.float32)),
            mean=bad(rng.uniform(-1, 1, (E, 1)).astype(np.float32)),
            reward=bad(rng.normal(size=E).astype(np.float32)),
            terminated=terminated,
            truncated=truncated,
            finite=finite,
            final_observation=bad(reached),
        )
        current = np.where(ended[:, None], observe(), reached)
        steps = np.where(ended, 0, steps)


def live(ring, steps, capacity=None, drops=()):
    """The same life in both memories. `drops`: (row, transitions, least)."""
    capacity = ring if capacity is None else capacity
    memory, model = buffer.init(ring, E, EPISODE, 2, 1), ListReplay()
    for row, step in enumerate(steps):
        memory = add(memory, step, capacity)
        model.add(step, capacity, ring)
        for when, transitions, least in drops:
            if when == row:
                memory = drop_oldest(memory, transitions, least)
                model.drop_oldest(transitions, least)
    return memory, model


lives = given(
    ring=st.sampled_from(RINGS),
    seed=st.integers(0, 10**6),
    length=st.integers(N_MAX + 1, 40),
    capacity=st.integers(1, 30),
    drops=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 20)), max_size=3),
    n=st.integers(1, N_MAX),
)


def test_a_first_observation_that_is_not_finite_is_not_in_the_ring():
    step = next(life(0, 1))
    observation = step.observation.copy()
    observation[1] = np.nan
    memory = add(buffer.init(12, E, EPISODE, 2, 1), step.replace(observation=observation, finite=np.arange(E) != 1), 12)
    np.testing.assert_array_equal(memory.observation[0], np.nan_to_num(observation))
    assert memory.outcome[0, 1] == buffer.INVALID


@settings(max_examples=40)
@lives
def test_every_window_is_that_of_a_plain_list_of_transitions(ring, seed, length, capacity, drops, n):
    memory, model = live(ring, life(seed, length), capacity, drops)
    assert (int(memory.head), int(memory.left)) == (len(model.rows), model.left)
    assert int(buffer.size(memory)) == len(model.kept())
    starts = [(row, e) for row in model.starts(n) for e in range(E)]
    if not starts:
        return
    padded = np.resize(np.array(starts), (RINGS[-1] + 1, 2))
    found = windows(memory, padded[:, 0], padded[:, 1], n, N_MAX, GAMMA)
    for i, (row, e) in enumerate(starts):
        step = model.rows[row]
        assert found.weight[i] == step.finite[e]
        if not step.finite[e]:
            continue
        total, discount, reached, passed = model.window(row, e, n)
        np.testing.assert_array_equal(found.observation[i], step.observation[e])
        np.testing.assert_array_equal(found.action[i], step.action[e])
        np.testing.assert_allclose(found.partial_return[i], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.bootstrap_discount[i], discount, rtol=1e-6)
        if discount:
            np.testing.assert_array_equal(found.next_observation[i], reached)
        discounts = [d for _, d in passed] + [0.0] * (N_MAX - 1 - len(passed))
        np.testing.assert_allclose(found.between_discount[i], discounts, rtol=1e-6)
        for k, (state, _) in enumerate(passed):
            np.testing.assert_array_equal(found.between[i, k], state)


@settings(max_examples=20)
@lives
def test_nothing_non_finite_is_ever_in_the_ring(ring, seed, length, capacity, drops, n):
    assert_finite(live(ring, life(seed, length, failures=0.5), capacity, drops)[0])


@settings(max_examples=20)
@lives
def test_samples_start_at_kept_rows_whose_window_stops_before_the_write_head(ring, seed, length, capacity, drops, n):
    memory, model = live(ring, life(seed, length), max(capacity, (n + 1) * E), drops)
    allowed = {float(model.rows[row].observation[e, 0]) for row in model.starts(n) for e in range(E)}
    if not allowed:
        return
    batch = sample(memory, jax.random.key(seed), (1000,), n, N_MAX, GAMMA)
    assert set(batch.observation[:, 0].tolist()) == allowed


def test_samples_are_uniform():
    memory, model = live(16, life(0, 30))
    draws = sample(memory, jax.random.key(0), (70_000,), 1, N_MAX, GAMMA).observation[:, 0]
    counts = np.unique(draws, return_counts=True)[1]
    assert counts.size == len(model.starts(1)) * E == 14
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)


def test_a_truncated_step_bootstraps_from_the_observation_reached_and_not_from_the_reset():
    memory, model = live(16, life(0, EPISODE + 2, ends=0, failures=0))
    last = EPISODE - 1
    batch = windows(memory, jnp.full(E, last), jnp.arange(E), 3, N_MAX, GAMMA)
    np.testing.assert_array_equal(batch.next_observation, model.rows[last].final_observation)
    assert (batch.next_observation != model.rows[last + 1].observation).all()
    np.testing.assert_allclose(batch.bootstrap_discount, GAMMA, rtol=1e-6)
    np.testing.assert_array_equal(batch.partial_return, model.rows[last].reward)


def test_final_observations_survive_as_long_as_their_rows():
    """Every episode is cut, as often as the side ring allows, and the ring has turned many times."""
    memory, model = live(23, life(0, 100, ends=0, failures=0))
    cuts = [(r, e) for r in model.starts(1) for e in range(E) if model.rows[r].truncated[e]]
    assert len(cuts) >= 4
    rows, columns = map(np.array, zip(*cuts, strict=True))
    batch = windows(memory, rows, columns, 1, N_MAX, GAMMA)
    expected = [model.rows[r].final_observation[e] for r, e in cuts]
    np.testing.assert_array_equal(batch.next_observation, expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), transitions=st.integers(0, 60), least=st.integers(0, 60))
def test_drop_oldest_keeps_at_least_the_given_number(seed, transitions, least):
    memory, _ = live(16, life(seed, 12))
    before = int(buffer.size(memory))
    after = int(buffer.size(drop_oldest(memory, transitions, least)))
    assert min(before, least) <= after <= before
    assert before - after <= transitions


def drift(observation):
    """A deterministic policy that differs from the stored actions."""
    return jnp.sin(observation[..., 1:])


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 40),
    count=st.sampled_from([1, 5, 8, 100]),
    kind=st.sampled_from(["half_mse", "l2"]),
)
def test_policy_distance_is_the_mean_over_the_oldest_valid_transitions(seed, length, count, kind):
    memory, model = live(23, life(seed, length))
    oldest = [(step, e) for step, e in model.kept()[:count] if step.finite[e]]
    now = lambda step, e: np.sin(step.observation[e, 1:])
    if kind == "half_mse":
        distances = [0.5 * np.mean((now(s, e) - s.mean[e]) ** 2) for s, e in oldest]
    else:
        distances = [np.linalg.norm(now(s, e) - s.action[e]) for s, e in oldest]
    found = policy_distance(memory, drift, count, kind)
    np.testing.assert_allclose(found, np.mean(distances) if oldest else 0, rtol=1e-5, atol=1e-7)


def aged(means):
    """A full ring whose rows were collected with the given noise-free actions, oldest first."""
    memory = buffer.init(len(means) * E, E, EPISODE, 2, 1)
    return memory.replace(
        mean=jnp.broadcast_to(jnp.asarray(means, jnp.float32)[:, None, None], (len(means), E, 1)),
        head=jnp.int32(len(means)),
    )


def check(memory, *, threshold=0.2, least=0, ratio=0.25, until_close=False, count=4):
    """A buffer check against the policy that always does 0: distance measured, rows left."""
    distance, left = buffer.shrink(
        memory,
        lambda observation: jnp.zeros((*observation.shape[:-1], 1)),
        count,
        "half_mse",
        threshold=jnp.float32(threshold),
        least=jnp.int32(least),
        ratio=jnp.float32(ratio),
        until_close=until_close,
    )
    return float(distance), int(left)


OLD = [1.0] * 6 + [0.0] * 6


@pytest.mark.parametrize("until_close", [False, True])
def test_shrink_reports_the_distance_before_it_drops(until_close):
    assert check(aged(OLD), until_close=until_close)[0] == 0.5


def test_shrink_once_drops_the_given_share_of_the_oldest():
    assert check(aged(OLD), ratio=0.25) == (0.5, 3)
    assert check(aged(OLD), ratio=0.5) == (0.5, 6)


def test_shrink_until_close_drops_as_many_as_measured_until_the_distance_is_below():
    # Four transitions are two rows; 6 rows are far.
    assert check(aged(OLD), until_close=True) == (0.5, 6)
    # Half of what is measured is far: 0.25 > 0.2, so it goes too.
    assert check(aged([1.0] * 5 + [0.0] * 7), until_close=True) == (0.5, 6)
    assert check(aged([1.0] * 5 + [0.0] * 7), until_close=True, threshold=0.3) == (0.5, 4)


@pytest.mark.parametrize("until_close", [False, True])
def test_shrink_drops_nothing_when_close_or_fixed_or_at_the_minimum(until_close):
    for settings_ in ({"threshold": 0.6}, {"threshold": np.inf}, {"least": 24}, {"least": 99}):
        assert check(aged(OLD), until_close=until_close, **settings_)[1] == 0


@pytest.mark.parametrize("until_close", [False, True])
def test_shrink_stops_at_the_minimum(until_close):
    assert check(aged([1.0] * 12), until_close=until_close, least=20, ratio=0.9)[1] == 2
    assert check(aged([1.0] * 12), until_close=until_close, least=19, ratio=0.9)[1] == 2


def test_shrink_until_close_ends_when_less_than_a_row_is_to_go():
    assert check(aged([1.0] * 12), until_close=True, count=1)[1] == 0


@pytest.mark.parametrize("capacity", [1, 16, 23])
def test_num_bytes_are_the_bytes_allocated(capacity):
    sizes = (capacity, E, EPISODE, 5, 3)
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(buffer.init(*sizes)))
    assert buffer.num_bytes(*sizes) == real


def test_a_ring_has_room_for_its_capacity_and_less_than_a_row_more():
    for capacity in range(1, 20):
        room = buffer.rows_for(capacity, 4) * 4
        assert capacity <= room < capacity + 4
