"""Diagnostics: each against a slow oracle or a network built for it, then in runs, masked, packed and in sweeps."""

import functools
import itertools
import json

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rlx2_jax import envs, networks
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import resolve
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.training import evaluation, programs
from tests.conftest import TD3_THEN_SAC, operand_axes, small
from tests.test_run import quiet

KEY = jax.random.PRNGKey(0)

NETWORK = ("fan_in_min", "fan_in_max", "fan_in_cv", "dead", "churn", "overlap", "dormant", "gradient_snr")
COLUMNS = {f"{name}_{key}" for name in ("actor", "critic") for key in NETWORK}
COLUMNS |= {"critic_rank", "value_bias", "return_discounted"}


wiring, overlap = jax.jit(diagnostics.wiring), jax.jit(diagnostics.overlap)
effective_rank = jax.jit(diagnostics.effective_rank)
SIZES = ((3, 8, 2), (4, 6, 5, 2), (1, 3, 8, 7, 1))


@st.composite
def wired(draw):
    """Masks `[twins, in, out]` of a perceptron with links in every live layer, and its live width."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.sampled_from(SIZES))
    width = draw(st.integers(1, 8))
    density = draw(st.sampled_from([0.1, 0.4, 0.8]))
    matrices = []
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = rng.random((2, rows, columns)) < density
        matrix[:, 0, 0] = True
        if i > 0:
            matrix[:, width:] = False
        if i < len(sizes) - 2:
            matrix[..., width:] = False
        matrices.append(matrix)
    return matrices, width


def tree(matrices):
    return {f"Dense_{i}": {"kernel": jnp.asarray(m), "bias": None} for i, m in enumerate(matrices)}


@hypothesis.given(wired())
def test_wiring_is_what_a_count_by_hand_finds(case):
    matrices, width = case
    fan_ins, spreads, dead = [], [], []
    for before, after in itertools.pairwise(matrices):
        for twin in range(2):
            layer = []
            for unit in range(min(width, before.shape[-1])):
                layer.append(sum(bool(link) for link in before[twin, :, unit]))
                dead.append(layer[-1] == 0 or not any(after[twin, unit]))
            fan_ins += layer
            spreads.append(np.std(layer) / np.mean(layer))
    found = wiring([*map(jnp.asarray, matrices)], jnp.int32(width))
    assert found["fan_in_min"] == min(fan_ins)
    assert found["fan_in_max"] == max(fan_ins)
    np.testing.assert_allclose(found["fan_in_cv"], np.mean(spreads), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["dead"], np.mean(dead), rtol=1e-6)


def test_where_no_matrix_fits_the_next_units_are_seen_by_their_links_in():
    """As where every layer reads the observation, too."""
    shapes = (5, 8), (13, 8), (13, 1)
    matrices = [np.ones((2, *shape), bool) for shape in shapes]
    matrices[1][0, :, 3] = False
    matrices[1][:, 1:5, 0] = False
    found = wiring([*map(jnp.asarray, matrices)], jnp.int32(8))
    assert (found["fan_in_min"], found["fan_in_max"]) == (0, 13)
    assert found["dead"] == pytest.approx(1 / 32)


@hypothesis.given(wired(), st.integers(0, 2**32 - 1))
def test_overlap_is_the_share_of_links_that_were_there_before(case, seed):
    matrices, _ = case
    rng = np.random.default_rng(seed)
    earlier = [rng.random(m.shape) < 0.5 for m in matrices]
    both = sum((m & e).sum() for m, e in zip(matrices, earlier, strict=True))
    found = overlap(tree(matrices), diagnostics.compress(tree(earlier)))
    np.testing.assert_allclose(found, both / sum(m.sum() for m in matrices), rtol=1e-6)
    assert overlap(tree(matrices), diagnostics.compress(tree(matrices))) == 1


def test_first_masks_take_one_bit_per_weight():
    program = programs.make_program(small(hidden=(256, 256)))
    state = jax.eval_shape(program.init, KEY, program.hparams)
    for name in ("actor", "critic"):
        weights = sum(kernel.size for kernel in masking.kernels(getattr(state.agent, name).params))
        assert sum(part.size for part in state.first_masks[name]) == pytest.approx(weights / 8, abs=3)


@pytest.mark.parametrize("twins", [False, True])
def test_activations_are_those_of_the_network(twins):
    network = networks.Net(networks.MLP((5, 4, 2)), twins=twins)
    inputs = jax.random.normal(KEY, (7, 3))
    params = network.init(KEY, 3)
    hidden, output = network.activations(params, inputs)
    np.testing.assert_allclose(output, network.apply(params, inputs), rtol=1e-5, atol=1e-6)
    assert [layer.shape[-1] for layer in hidden] == [5, 4]
    assert all((layer >= 0).all() and (layer == 0).any() for layer in hidden)


def test_dormant_units_are_those_next_to_silent_beside_their_layer():
    tau = diagnostics.DORMANT
    # With a mean of 1, of the first four as well as of all, these are the units' scores.
    scores = np.array([0.0, 0.98 * tau, 1.02 * tau, 4 - 2 * tau, 1.0])
    rng = np.random.default_rng(0)
    layer = rng.random((64, 5))
    layer = jnp.asarray(layer / layer.mean(0) * scores * 7, jnp.float32)
    silent = jnp.zeros((64, 3))
    assert diagnostics.dormant([layer], jnp.int32(5)) == pytest.approx(2 / 5)
    assert diagnostics.dormant([layer, silent], jnp.int32(5)) == pytest.approx((2 + 3) / 8)
    # Of a narrow network only live units count, against the mean of these.
    assert diagnostics.dormant([layer.at[:, 4].set(0)], jnp.int32(4)) == pytest.approx(2 / 4)
    twins = jnp.stack([layer, layer[:, :1] + jnp.ones((64, 5))])
    assert diagnostics.dormant([twins], jnp.int32(5)) == pytest.approx(2 / 10)


@hypothesis.given(st.integers(1, 12), st.sampled_from([(12, 20), (40, 12)]), st.integers(0, 2**32 - 1))
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank, shape, seed):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0][:, :rank] for n in shape)
    assert effective_rank(jnp.asarray(37 * left @ right.T, jnp.float32)) == rank


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_the_effective_rank_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(size=(2, 30, 3)) @ rng.normal(size=(2, 3, 20)) + rng.normal(), 0)
    expected = []
    for twin in features:
        sigma = np.linalg.svd(twin, compute_uv=False)
        share = np.cumsum(sigma) / sigma.sum()
        hypothesis.assume(np.abs(share - 0.99).min() > 1e-4)
        expected.append(next(k for k in range(1, 21) if share[k - 1] >= 0.99))
    np.testing.assert_array_equal(effective_rank(jnp.asarray(features, jnp.float32)), expected)


def test_ranks_are_taken_of_one_matrix_at_a_time_however_many_runs_there_are():
    """The matrices of a batch share a pool of threads, in which several devices of a CPU have waited for ever."""
    features = np.random.default_rng(0).normal(size=(5, 2, 6, 4))
    together = jax.vmap(jax.vmap(diagnostics.effective_rank))
    assert operand_axes("svd", together, features) == [2]
    np.testing.assert_array_equal(together(features), effective_rank(features))


def test_features_of_nothing_have_rank_zero():
    assert diagnostics.effective_rank(jnp.zeros((6, 4))) == 0


def test_a_long_tail_counts_although_it_is_far_below_the_first_value():
    """ReLU features have one large value; the roots of a Gram matrix's eigenvalues would drown the others."""
    sigma = np.r_[1.0, np.full(20, 1e-3), np.zeros(43)]
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(2))
    features = jnp.asarray(left * sigma @ right.T, jnp.float32)
    assert diagnostics.effective_rank(features) == 11


@jax.jit
def noise_of(parts, mask):
    """Signal-to-noise ratio of gradients of one matrix, given by part."""
    gradient = lambda part: {"Dense_0": {"kernel": part}}
    return diagnostics.signal_to_noise(gradient, jnp.asarray(parts, jnp.float32), {"Dense_0": {"kernel": mask}})


@hypothesis.given(st.sampled_from([4, 5, 8]), st.integers(0, 2**32 - 1))
def test_signal_to_noise_is_what_numpy_finds_at_the_absent_links(parts, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(parts, 2, 5, 6)) + rng.normal(size=(2, 5, 6))
    mask = rng.random((2, 5, 6)) < 0.5
    hypothesis.assume(not mask.all())
    ratio = parts * values.mean(0) ** 2 / values.var(0, ddof=1)
    expected = ((parts - 3) / (parts - 1) * ratio - 1)[~mask].mean()
    found = noise_of(values, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("signal", [0.0, 0.5, 2.0])
def test_the_expected_signal_to_noise_is_that_of_the_whole_batch(signal):
    """(mu / sigma)^2 times the number of parts, 0 for noise alone, whatever the scale."""
    values = 1e-3 * (signal + np.random.default_rng(1).normal(size=(diagnostics.PARTS, 400, 400)))
    found = noise_of(values, np.zeros((400, 400), bool))
    # Of 160,000 entries; the deviation of one is 2.8 for noise alone, and grows with the signal.
    np.testing.assert_allclose(found, diagnostics.PARTS * signal**2, rtol=0.02, atol=0.04)


def test_signal_without_noise_is_huge_no_gradient_is_none_and_no_candidate_is_nan():
    mask = np.zeros((2, 3), bool)
    mask[0, 0] = True
    same = np.ones((8, 2, 3)) * np.arange(1, 4)
    assert noise_of(same, mask) > 1e12
    assert noise_of(np.zeros((8, 2, 3)), mask) == 0
    assert np.isnan(noise_of(same, np.ones((2, 3), bool)))
    assert np.isnan(noise_of(same[:3], mask))


def test_split_makes_equal_parts_and_leaves_a_remainder_out():
    parts = diagnostics.split({"x": jnp.arange(19)})["x"]
    np.testing.assert_array_equal(parts, np.arange(16).reshape(2, 8).T)
    np.testing.assert_array_equal(diagnostics.split(jnp.arange(3)), [[0], [1], [2]])


@pytest.mark.parametrize(("task", "gamma"), [("chain", 0.5), ("forever", 0.9), ("action", 0.9), ("forever", 1.0)])
def test_discounted_returns_are_a_replay_of_the_episode(task, gamma):
    env = envs.make(f"probe/{task}")
    start = jax.vmap(env.reset)(jax.random.split(KEY, 5))
    policy = lambda observation: 0.3 * observation
    found = evaluation.play(env, policy, start, 7, gamma)
    np.testing.assert_array_equal(found.plain, evaluation.episode_returns(env, policy, start, 7))
    for i in range(5):
        state, rewards = jax.tree.map(lambda x, i=i: x[i], start), []
        while len(rewards) < 7:
            state = env.step(state, policy(state.observation))
            rewards.append(float(state.reward))
            if state.terminated:
                break
        np.testing.assert_allclose(found.discounted[i], np.sum(gamma ** np.arange(len(rewards)) * rewards), rtol=1e-5)


class Run:
    """A program and its compiled functions."""

    def __init__(self, **changes):
        self.program = programs.make_program(small(**changes))
        for name in ("init", "renew", "chunk", "report", "pack"):
            setattr(self, name, jax.jit(getattr(self.program, name)))

    def start(self, hparams=None):
        return self.renew(self.init(KEY, hparams or self.program.hparams))

    def later(self, state, chunks, hparams=None):
        for _ in range(chunks):
            state = self.chunk(self.renew(state), hparams or self.program.hparams, self.program.schedule)
        return self.renew(state)

    def values(self, state, hparams=None):
        return jax.device_get(self.report(state, hparams or self.program.hparams, self.program.schedule)[1])


run = functools.cache(lambda agent: Run(agent=agent))


@functools.cache
def states(agent):
    """States at the start, and before and after the first events, each chunk reported."""
    r = run(agent)
    first = r.start()
    warm = r.later(first, 1)
    return first, warm, r.later(warm, 1)


def kernels_of(state, name):
    return [np.asarray(kernel) for kernel in masking.kernels(getattr(state.agent, name).mask)]


@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_a_run_starts_at_an_overlap_of_one_without_churn_and_both_follow_its_events(agent):
    r = run(agent)
    first, warm, after = states(agent)
    before, found = r.values(warm), r.values(after)
    for name in ("actor", "critic"):
        assert before[f"{name}_overlap"] == 1
        assert before[f"{name}_churn"] == 0
        assert np.isnan(before[f"{name}_gradient_snr"])
        pairs = list(zip(kernels_of(first, name), kernels_of(after, name), strict=True))
        shared, links = sum((a & b).sum() for a, b in pairs), sum(b.sum() for _, b in pairs)
        assert 0 < shared < links
        np.testing.assert_allclose(found[f"{name}_overlap"], shared / links, rtol=1e-6)
        np.testing.assert_allclose(found[f"{name}_churn"], getattr(after.tally, name).grown / links, rtol=1e-6)
        assert found[f"{name}_churn"] >= 1 - found[f"{name}_overlap"] - 1e-6
        assert np.isfinite(found[f"{name}_gradient_snr"])
    # A report begins another period, and the masks that the run began with stay.
    emptied = r.report(after, r.program.hparams, r.program.schedule)[0]
    again = r.values(emptied)
    for name in ("actor", "critic"):
        assert again[f"{name}_churn"] == 0
        assert again[f"{name}_overlap"] == found[f"{name}_overlap"]


def test_the_signal_to_noise_of_a_report_is_the_mean_over_its_events():
    r = run("td3")
    events = states("td3")[2].tally.critic
    assert events.count == 4, "200 calls, one event in 50"
    np.testing.assert_allclose(r.values(states("td3")[2])["critic_gradient_snr"], events.signal_to_noise / events.count)


@pytest.mark.parametrize("method", ["dense", "ss", "tiny"])
def test_a_fixed_topology_has_no_churn_and_no_events_even_where_others_have_theirs(method):
    r = run("td3")
    # Another sparsity for the actor, so that its width is another too.
    hparams = make_hparams(resolve(small(method=method, actor_sparsity=0.5)), 1, 1)
    found = r.values(r.later(r.start(hparams), 2, hparams), hparams)
    for name in ("actor", "critic"):
        assert found[f"{name}_churn"] == 0
        assert found[f"{name}_overlap"] == 1
        assert np.isnan(found[f"{name}_gradient_snr"])
        if method != "ss":
            assert found[f"{name}_fan_in_cv"] == found[f"{name}_dead"] == 0
    if method == "tiny":
        assert hparams.actor_width != hparams.critic_width
        assert found["critic_fan_in_max"] == max(2, hparams.critic_width)
        assert found["critic_rank"] <= hparams.critic_width < 16
    if method == "dense":
        assert found["critic_fan_in_min"] == 2 and found["critic_fan_in_max"] == 16


@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_a_report_says_of_packed_networks_what_it_says_of_masked_ones(agent):
    """Wiring exactly, values to rounding, from one state."""
    r = run(agent)
    after = states(agent)[2]
    packed = Run(agent=agent, compute="packed")
    assert isinstance(packed.pack(after).agent.critic, networks.Packed)
    ours, theirs = packed.values(packed.pack(after)), r.values(after)
    assert set(ours) == set(theirs) >= COLUMNS
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name in COLUMNS:
        if name.partition("_")[2] in ("fan_in_min", "fan_in_max", "fan_in_cv", "dead", "churn", "overlap"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    start = jax.jit(programs.unpack)(packed.start())
    chex.assert_trees_all_equal(start.first_masks, states(agent)[0].first_masks)


def test_the_value_bias_is_q_minus_the_return_of_the_same_episodes():
    """On `forever` an episode of 10 steps is worth (1 - gamma^10) / (1 - gamma), and these critics say 4 and 3."""
    r = Run(env="probe/forever", gamma=0.9)
    state = r.later(r.start(), 1)
    params = jax.tree.map(jnp.zeros_like, state.agent.critic.params)
    params["Dense_2"]["bias"] = jnp.array([[4.0], [3.0]])
    agent = state.agent.replace(critic=state.agent.critic.replace(params=params))
    state = state.replace(agent=agent)
    worth = (1 - 0.9**10) / (1 - 0.9)
    found = r.values(state)
    np.testing.assert_allclose(found["return_discounted"], worth, rtol=1e-5)
    np.testing.assert_allclose(found["value_bias"], 3 - worth, rtol=1e-5)
    other = r.program.hparams.replace(gamma=jnp.float32(0.5))
    np.testing.assert_allclose(r.values(state, other)["return_discounted"], 2 * (1 - 0.5**10), rtol=1e-5)


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_the_value_bias_asks_the_critics_about_the_policys_own_actions(agent):
    r = run(agent)
    state = states(agent)[2]
    first = state.envs.pool.observation[:4]
    action = r.program.agent.mode(state.agent.actor, first)
    critic = networks.Net(networks.MLP((16, 16, 1)), twins=True)
    q = critic.apply(state.agent.critic.params, first, action)[..., 0].min(0)
    reward = 1 - (action - first / 2) ** 2
    np.testing.assert_allclose(r.values(state)["value_bias"], jnp.mean(q - reward[:, 0]), rtol=1e-4, atol=1e-5)


def test_a_row_of_a_sweep_says_what_the_run_says_alone():
    r = run("td3")
    variants = ({}, {"method": "ss"}, {"method": "tiny", "critic_sparsity": 0.8}, {"method": "set", "gamma": 0.9})
    hparams = [make_hparams(resolve(small(**changes)), 1, 1) for changes in variants]
    alone = [r.later(r.start(h), 2, h) for h in hparams]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    axes = programs.TrainState(**dict.fromkeys(vars(alone[0]), 0)).replace(progress=None)
    many = stack(alone).replace(progress=alone[0].progress)
    report = jax.jit(jax.vmap(r.program.report, in_axes=(axes, 0, None), out_axes=(axes, 0)))
    found = jax.device_get(report(many, stack(hparams), r.program.schedule)[1])
    for i, (state, h) in enumerate(zip(alone, hparams, strict=True)):
        row = {name: values[i] for name, values in found.items()}
        chex.assert_trees_all_close(row, r.values(state, h), rtol=1e-4, atol=1e-5)


def test_every_row_of_a_run_has_every_column(tmp_path):
    quiet(small(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert set(row) >= COLUMNS
        assert all(row[name] is not None for name in COLUMNS)
        for name in COLUMNS:
            if name.partition("_")[2] in ("dead", "overlap", "dormant"):
                assert 0 <= row[name] <= 1
        assert isinstance(row["actor_fan_in_min"], int)
        assert 1 <= row["critic_rank"] <= 16
    assert rows[-1]["critic_overlap"] < 1
