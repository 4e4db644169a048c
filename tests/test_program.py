"""The compiled run: one compilation for all methods, real branches under vmap, events when due, and learning."""

import collections
import functools
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import networks
from rlx2_jax.config import Config, Mechanisms, make_schedule, resolve, values
from rlx2_jax.networks import masking
from rlx2_jax.networks.kinds.mlp import MLP
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.replay import buffer
from rlx2_jax.training import programs
from tests.conftest import PAPER_AGENTS, TD3_THEN_SAC, assert_finite, assert_sparse, census, equations, small

KEY = jax.random.key(0)
E = 4


class Run:
    """A program on `probe/fragile` whose chunks are single iterations, each of its functions compiled once."""

    def __init__(self, agent):
        self.agent = agent
        self.program = programs.make_program(self.config())
        self.traces = collections.Counter()
        for name in ("init", "renew", "chunk", "report"):
            setattr(self, name, jax.jit(self._counted(name)))

    def _counted(self, name):
        def function(*args):
            self.traces[name] += 1
            return getattr(self.program, name)(*args)

        return function

    def config(self, **changes):
        """A configuration of the same program."""
        settings = {"agent": self.agent, "env": "probe/fragile", "chunk_steps": E, "critic_sparsity": 0.8}
        return resolve(small(**(settings | changes)))

    def start(self, seed=0, **changes):
        """First state, hyperparameters and schedule of a configuration."""
        config = self.config(**changes)
        hparams, schedule = make_hparams(config, 1, 1), make_schedule(config)
        return self.renew(self.init(jax.random.key(seed), hparams)), hparams, schedule

    def later(self, iterations, state, hparams, schedule):
        """The state some iterations later."""
        for _ in range(iterations):
            state = self.chunk(state, hparams, schedule)
        return state

    def iterate(self, iterations, state, hparams, schedule):
        """Pairs of states before and after each iteration."""
        for _ in range(iterations):
            after = self.chunk(state, hparams, schedule)
            yield state, after
            state = after


run = functools.cache(Run)


def mask_changed(before, after, name):
    """Whether an iteration rewired a network."""
    pair = (masking.kernels(getattr(state.agent, name).mask) for state in (before, after))
    return any((a != b).any() for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_nothing_recompiles_when_method_sparsity_seed_or_schedule_change(agent):
    r = run(agent)
    variants = (
        {"method": "rlx2"},
        {"method": "set", "actor_sparsity": 0.85, "seed": 1},
        {"method": "rigl", "critic_sparsity": 0.7, "evolve_interval": 10, "drop_fraction": 0.3},
        {"method": "dense", "warmup_steps": 100},
        {"method": "tiny", "gamma": 0.9, "actor_lr": 1e-2},
        {"method": "ss", "n_step": 2, "n_step_delay": 4, "buffer_max": 400, "dynamic_buffer": True},
    )
    for changes in variants:
        state, hparams, schedule = r.start(**changes)
        state = r.later(60, state, hparams, schedule)
        state, report = r.report(r.renew(state), hparams, schedule)
        r.chunk(state, hparams, schedule)
        assert_sparse(state.agent.actor, hparams.actor_links)
        assert_sparse(state.agent.critic, hparams.critic_links)
        assert report["updates"] == (60 * E - r.config(**changes).warmup_steps)
    assert set(r.traces.values()) == {1}


@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_nothing_is_learned_before_the_warm_up_is_over_and_actions_are_random_till_then(agent):
    r = run(agent)
    state, hparams, schedule = r.start()
    for before, after in r.iterate(52, state, hparams, schedule):
        learns = int(before.progress.env_steps) >= 200
        changed = jax.tree.map(lambda a, b: (a != b).any(), before.agent.critic, after.agent.critic)
        assert any(jax.tree.leaves(changed)) == learns
        assert after.progress.critic_calls == max(0, after.progress.env_steps - 200)
    kept = after.replay.action[:50].ravel()
    valid = np.asarray(kept[np.asarray(after.replay.outcome[:50].ravel()) != buffer.INVALID])
    assert abs(valid.mean() + 0.05) < 0.12, "uniform up to 0.9, where the probe breaks"
    assert valid.min() < -0.9
    np.testing.assert_array_equal(after.replay.mean[:50].ravel(), kept)


@pytest.mark.parametrize("method", ["rigl", "set", "ss"])
def test_each_network_is_rewired_when_its_own_calls_cross_the_interval_and_never_after_the_end(method):
    r = run("td3")
    state, hparams, schedule = r.start(method=method, evolve_until=0.5)
    happened = collections.Counter()
    for before, after in r.iterate(250, state, hparams, schedule):
        for name, end in (("critic", 500), ("actor", 250)):
            calls = [int(getattr(s.progress, f"{name}_calls")) for s in (before, after)]
            due = calls[1] // 50 > calls[0] // 50 and calls[1] < end and method != "ss"
            changed = mask_changed(before, after, name)
            happened[name] += changed
            assert due or not changed
            # Late in the schedule the share rounds to no link, and gradients may choose those just dropped.
            if due and calls[1] < 0.7 * end and method == "set":
                assert changed
    if method == "ss":
        assert not happened.total()
    else:
        assert happened["critic"] >= 3
        assert happened["actor"] >= 1
    tally = after.tally
    assert (tally.links_dropped > 0) == (method != "ss")
    assert tally.links_dropped == tally.links_grown


def test_targets_span_n_steps_once_the_delay_is_over_and_one_step_till_then():
    r = run("td3")
    state, hparams, schedule = r.start()
    seen = []
    for _, after in r.iterate(130, state, hparams, schedule):
        if after.progress.env_steps % 40 == 0:
            n_step = r.report(after, hparams, schedule)[1]["n_step"]
            assert n_step == (3 if after.progress.critic_calls >= 300 else 1)
            seen.append(int(n_step))
    assert set(seen) == {1, 3}


def test_the_length_of_the_windows_matters_only_after_the_delay():
    r = run("td3")
    state, hparams, schedule = r.start(n_step_delay=100)
    other = hparams.replace(n_step=jnp.int32(1))
    before = r.later((200 + 100) // E, state, hparams, schedule)
    for steps in (1, 3):
        n = hparams.replace(n_step=jnp.int32(steps))
        state = r.chunk(before, n, schedule)
        same = r.chunk(before, other, schedule)
        pairs = zip(*(jax.tree.leaves(s.agent.critic.params) for s in (state, same)), strict=True)
        assert all((a == b).all() for a, b in pairs) == (steps == 1)
    early = [r.later((200 + 100) // E, r.start()[0], h, schedule).agent for h in (hparams, other)]
    chex.assert_trees_all_equal(*early)


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_buffer_drops_its_oldest_share_at_every_check_as_long_as_it_may(dynamic):
    """At threshold 0 every policy is too far from what it did before."""
    r = run("td3")
    state, hparams, schedule = r.start(dynamic_buffer=dynamic, distance_threshold=0.0, buffer_max=400)
    rows, drops = 0, 0
    for before, after in r.iterate(250, state, hparams, schedule):
        rows = min(rows + 1, 400 // E)
        check = int(after.progress.env_steps) // 100 > int(before.progress.env_steps) // 100
        learning = before.progress.env_steps >= schedule.warmup_steps
        if check and dynamic and learning and rows * E > 100:
            drop = min(int(np.float32(0.1) * np.float32(rows * E)) // E, rows - 100 // E)
            rows, drops = rows - drop, drops + 1
        assert buffer.size(after.replay) == rows * E
        assert check or after.policy_distance == before.policy_distance
    assert (drops > 5) == dynamic
    assert after.policy_distance > 0


def test_nothing_is_dropped_for_an_agent_that_has_not_begun_to_learn():
    r = run("td3")
    state, hparams, schedule = r.start(distance_threshold=0.0, warmup_steps=300)
    warm = r.later(300 // E, state, hparams, schedule)
    assert buffer.size(warm.replay) == 300
    assert warm.policy_distance > 0
    assert buffer.size(r.later(100 // E, warm, hparams, schedule).replay) < 400


@pytest.mark.parametrize(("num_envs", "delay"), [(1, 2), (2, 6)])
def test_an_iteration_goes_on_until_a_cycle_of_updates_is_due(num_envs, delay):
    changes = {"num_envs": num_envs, "policy_delay": delay, "chunk_steps": 60, "total_steps": 1200}
    program = programs.make_program(small(env="probe/chain", eval_every=60, warmup_steps=240, **changes))
    chunk, hparams, schedule = jax.jit(program.chunk), program.hparams, program.schedule
    state = jax.jit(program.renew)(program.init(KEY, hparams))
    for _ in range(5):
        state = chunk(state, hparams, schedule)
    progress = state.progress
    assert (progress.env_steps, progress.critic_calls, progress.actor_calls) == (300, 60, 60 // delay)
    assert state.tally.iterations == 60 // delay
    assert state.tally.episodes == 150
    assert_finite(state.tally)
    rows = 300 // num_envs
    assert state.replay.head == rows
    observation, action = state.replay.observation[:rows, :, 0], np.asarray(state.replay.action[: 240 // num_envs])
    np.testing.assert_array_equal(observation, np.broadcast_to(np.arange(rows)[:, None] % 2, observation.shape))
    assert len(np.unique(action)) == action.size, "each step has random numbers of its own"


def test_non_finite_steps_are_counted_and_kept_out():
    r = run("td3")
    state, hparams, schedule = r.start()
    after = r.later(50, state, hparams, schedule)
    invalid = int((after.replay.outcome[:50] == buffer.INVALID).sum())
    assert after.nonfinite == invalid > 0
    assert_finite((after.agent, after.replay, after.envs))


def test_every_random_draw_depends_on_the_seed():
    r = run("td3")
    one, other = (r.start(seed=seed)[0] for seed in (0, 1))
    for state in (one, other):
        assert not any(mask.all() for mask in masking.kernels(state.agent.critic.mask)[1:2])
    assert mask_changed(one, other, "critic")
    assert mask_changed(one, other, "actor")


def test_a_report_empties_the_tally_and_leaves_the_rest_alone():
    r = run("td3")
    state, hparams, schedule = r.start()
    state = r.later(60, state, hparams, schedule)
    after, report = r.report(state, hparams, schedule)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(after.tally))
    chex.assert_trees_all_equal(after.replace(tally=None), state.replace(tally=None))
    assert report["env_steps"] == 240
    assert report["replay_size"] == 240
    assert report["return_mean"] <= 10
    assert np.isclose(report["critic_sparsity"], 1 - sum(map(int, hparams.critic_links)) / (32 + 256 + 16))
    assert np.isclose(report["actor_sparsity"], 1 - sum(map(int, hparams.actor_links)) / (16 + 256 + 16))


@pytest.mark.parametrize("where", ["actor", "critic", "target"])
def test_a_parameter_that_is_not_a_number_is_a_diverged_run(where):
    state = run("td3").start()[0]
    assert programs.finite(state)
    name, field = ("critic", "target") if where == "target" else (where, "params")
    network = getattr(state.agent, name)
    broken = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), getattr(network, field))
    agent = state.agent.replace(**{name: network.replace(**{field: broken})})
    assert not programs.finite(state.replace(agent=agent))


def test_a_run_without_any_finite_experience_is_a_diverged_run():
    state = run("td3").start()[0]
    progress = state.progress.replace(env_steps=jnp.int32(200))
    assert not programs.finite(state.replace(progress=progress, nonfinite=jnp.int32(200)))


def stacked(tree, copies=2):
    """The same tree for several runs."""
    return jax.tree.map(lambda x: jnp.stack([x] * copies), tree)


PAPER = {"initial_mask": "random", "distance": "l2", "drop_rule": "until_close"}
RELEASE = {"reset_moments": False, "mask_initial_targets": False, "sac_explore": "mode"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param(PAPER, id="paper", marks=pytest.mark.slow),
        pytest.param(RELEASE, id="release", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_every_branch_of_a_chunk_stays_a_branch_in_a_sweep(agent, changes):
    p = programs.make_program(small(agent=agent, **changes))
    state = jax.eval_shape(p.init, KEY, p.hparams)
    alone = census(p.chunk, state, p.hparams, p.schedule)
    assert alone[0] >= 4, "learning, two events, buffer check"
    assert 3 <= alone[1] <= 6, "the actor acts, and SAC's also says its mode"
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.replace(key=None)).replace(key=KEY)

    def sweep(progress):
        axes = programs.TrainState(**dict.fromkeys(vars(state), 0)).replace(progress=progress)
        many = stacked(state) if progress == 0 else stacked(state).replace(progress=state.progress)
        chunk = jax.vmap(p.chunk, in_axes=(axes, 0, None), out_axes=axes)
        return census(chunk, many, stacked(p.hparams), p.schedule)

    assert sweep(None) == alone
    branches, products = sweep(0)
    assert branches < alone[0], "what this test would see if progress were batched"
    assert products > alone[1]


def test_every_branch_of_a_whole_run_stays_a_branch_in_a_sweep():
    config = small()
    train, p = programs.make_train(config), programs.make_program(config)
    keys = jax.random.split(KEY, 2)
    alone = jax.make_jaxpr(train)(KEY, p.hparams)
    sweep = jax.make_jaxpr(jax.vmap(train))(keys, stacked(p.hparams))
    count = lambda jaxpr: sum(name == "cond" for name, _ in equations(jaxpr.jaxpr))
    assert count(alone) == count(sweep) >= 4


SHORT = {
    "hidden": (16,),
    "total_steps": 400,
    "eval_every": 200,
    "chunk_steps": 100,
    "evolve_interval": 40,
    "n_step_delay": 100,
    "actor_sparsity": 0.5,
    "critic_sparsity": 0.5,
}
SWEEP = (
    {"method": "rlx2"},
    {"method": "set", "actor_sparsity": 0.6},
    {"method": "dense"},
    {"method": "tiny", "critic_sparsity": 0.8},
)


@functools.cache
def single_runs():
    """Each run of the sweep alone: (keys, hyperparameters, results), from one compilation."""
    keys = jax.random.split(KEY, len(SWEEP))
    hparams = [make_hparams(resolve(small(**SHORT | changes)), 1, 1) for changes in SWEEP]
    train = jax.jit(programs.make_train(small(**SHORT)))
    return keys, hparams, [train(k, h) for k, h in zip(keys, hparams, strict=True)]


def assert_same_run(found, expected):
    """Masks and counts exactly, values up to rounding."""
    (state, reports), (expected_state, expected_reports) = found, expected
    for name in ("actor", "critic"):
        network, other = (getattr(s.agent, name) for s in (state, expected_state))
        chex.assert_trees_all_equal(network.mask, other.mask)
        chex.assert_trees_all_close(network.params, other.params, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(state.replay, expected_state.replay, rtol=1e-3, atol=1e-3)
    chex.assert_trees_all_close(reports, expected_reports, rtol=1e-2, atol=1e-3)


def test_a_whole_run_reports_at_every_evaluation_and_counts_its_steps():
    results = single_runs()[2]
    for state, reports in results:
        np.testing.assert_array_equal(reports["env_steps"], [200, 400])
        np.testing.assert_array_equal(reports["updates"], [0, 200])
        assert state.progress.actor_calls == 100
        assert_finite(state.agent)
        np.testing.assert_array_equal(reports["links_dropped"], reports["links_grown"])
    last = [jax.tree.map(lambda x: x[-1], reports) for _, reports in results]
    assert [bool(reports["links_dropped"] > 0) for reports in last] == [True, True, False, False]
    assert [int(reports["n_step"]) for reports in last] == [3, 1, 1, 1]


def test_a_sweep_under_vmap_gives_each_runs_own_result():
    keys, hparams, results = single_runs()
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *hparams)
    found = jax.jit(jax.vmap(programs.make_train(small(**SHORT))))(keys, many)
    assert found[0].progress.env_steps.shape == (4,)
    for i, expected in enumerate(results):
        assert_same_run(jax.tree.map(lambda x, i=i: x[i], found), expected)


@pytest.mark.slow
def test_a_run_under_pmap_gives_the_same_result():
    keys, hparams, results = single_runs()
    found = jax.pmap(programs.make_train(small(**SHORT)))(keys[:1], stacked(hparams[0], 1))
    assert_same_run(jax.tree.map(lambda x: x[0], found), results[0])


LEARNING = {
    "hidden": (32, 32),
    "batch_size": 64,
    "total_steps": 4000,
    "warmup_steps": 400,
    "eval_every": 500,
    "chunk_steps": 500,
    "evolve_interval": 200,
    "n_step_delay": 1000,
    "buffer_max": 4000,
    "buffer_min": 1000,
    "buffer_check_interval": 500,
    "eval_episodes": 64,
    "reset_pool": 64,
    "actor_sparsity": 0.5,
    "critic_sparsity": 0.5,
    "actor_lr": 3e-3,
    "critic_lr": 3e-3,
    "alpha_lr": 1e-2,
    "tau": 0.05,
    "gamma": 0.9,
}

VALUES = {
    "constant": {0.0: 1.0},
    "observed": {-1.0: -1.0, 1.0: 1.0},
    "chain": {0.0: 0.9, 1.0: 1.0},
    "forever": {0.0: 10.0},
}
"""What each state of a probe is worth at a discount of 0.9, whatever the action."""

QUICK = ("td3", "forever")


def probes(tasks):
    """Agents and tasks; all but the quick one are slow."""
    pairs = [(agent, task) for agent in PAPER_AGENTS for task in tasks]
    return [pytest.param(*pair, marks=[] if pair == QUICK else pytest.mark.slow) for pair in pairs]


def learn(agent, task):
    """RLx2's final state and last report on a probe."""
    config = small(agent=agent, env=f"probe/{task}", **LEARNING)
    state, reports = jax.jit(programs.make_train(config))(KEY)
    # Between two events there is no gradient to judge.
    assert_finite((state.agent, {name: values for name, values in reports.items() if not name.endswith("_snr")}))
    last = jax.tree.map(lambda x: x[-1], reports)
    assert last["n_step"] == 3
    assert reports["links_grown"].sum() > 0
    return state, last


@pytest.mark.parametrize(("agent", "task"), probes(VALUES))
def test_critics_learn_what_a_probe_is_worth(agent, task):
    """`forever` is worth 10 only if its time limit of 10 steps bootstraps; without, 6.5 at most."""
    state, report = learn(agent, task)
    observation = jnp.array(list(VALUES[task]))[:, None]
    inputs = jnp.concatenate([observation, jnp.zeros_like(observation)], -1)
    critic = networks.Net(networks.MLP((*LEARNING["hidden"], 1)), twins=True)
    found = critic.apply(state.agent.critic.params, inputs)[..., 0]
    # SAC's temperature is by now too small for its entropy to count.
    assert report.get("alpha", 0.0) < 1e-3
    expected = list(VALUES[task].values())
    np.testing.assert_allclose(found, [expected, expected], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("agent", "task"), probes(["action"]))
def test_actors_learn_a_probes_best_action(agent, task):
    _, report = learn(agent, task)
    assert report["return_mean"] > 0.99
    assert report["q_mean"] < 1.02


OTHER = {
    "seed": 3,
    "total_steps": 4000,
    "schedule_scale": 0.1,
    "eval_every": 1000,
    "checkpoint_every": 77,
    "logger": "none",
    "score_evaluations": 2,
    "warmup_steps": 300,
    "evolve_interval": 70,
    "evolve_until": 0.5,
    "n_step_delay": 100,
    "buffer_check_interval": 200,
    "buffer_max": 900,
    "buffer_min": 200,
    "distance_threshold": 0.3,
    "drop_ratio": 0.2,
    "drop_fraction": 0.3,
    "n_step": 2,
    "dynamic_buffer": False,
    **dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr", "gamma", "tau"), 0.01),
    **dict.fromkeys(("explore_noise", "target_noise", "target_noise_clip"), 0.3),
}
"""Another value of every setting that is data of any program."""

LINKS = {"method": "set", "topology": "random", "actor_sparsity": 0.5, "critic_sparsity": 0.7}
"""Of every one that is data of masked ones."""

STATIC = {
    "env": "probe/chain",
    "episode_length": 20,
    "num_envs": 8,
    "update_ratio": 0.5,
    "agent": "sac",
    "network": "layernorm",
    "critic_network": "layernorm",
    "hidden": (16,),
    "batch_size": 32,
    "policy_delay": 4,
    "n_max": 4,
    "initial_mask": "random",
    "kernel_init": "lecun",
    "score_batches": 2,
    "distance": "l2",
    "drop_rule": "until_close",
    "reset_moments": False,
    "sac_explore": "mode",
    "mask_initial_targets": False,
    "compute": "packed",
    "eval_episodes": 5,
    "chunk_steps": 400,
    "reset_pool": 16,
}
"""Of every one that makes another program."""


def test_every_setting_is_data_or_a_time_or_the_hosts_alone_or_makes_another_program():
    said = [*values.VALUES, *values.METHOD, *values.TIMES, *values.UNSEEN]
    assert len(said) == len(set(said))
    assert {*values.VALUES, *values.TIMES, *values.UNSEEN} == set(OTHER)
    assert set(values.METHOD) == set(LINKS)
    elsewhere = {"backend", "data_parallel", "ticket", "ticket_weights"}
    assert set(vars(Config())) - set(said) == {*STATIC, *elsewhere}


@pytest.mark.parametrize(("compute", "data"), [("masked", OTHER | LINKS), ("packed", OTHER)])
def test_runs_that_differ_in_data_share_their_functions(compute, data):
    """So that a second run in a process, of another seed, length or method, has nothing to trace and compile."""
    one, other = (programs.make_program(small(compute=compute, **changes)) for changes in ({}, data))
    for name in ("init", "renew", "chunk", "learn", "report", "pack"):
        assert getattr(one, name) is getattr(other, name)


def test_functions_of_a_run_see_nothing_of_its_data():
    shared, other = programs.make_program(small()), resolve(small(**OTHER, **LINKS))
    own = programs._make_functions.__wrapped__(other, shared.env)
    state = jax.eval_shape(shared.init, KEY, shared.hparams)
    given = {"init": (KEY, shared.hparams), "renew": (state,)}
    given |= dict.fromkeys(("chunk", "report"), (state, shared.hparams, shared.schedule))
    for name, arguments in given.items():
        made = (str(jax.make_jaxpr(function)(*arguments)) for function in (own[name], getattr(shared, name)))
        assert next(made) == next(made)


@pytest.mark.parametrize("field", STATIC)
def test_a_setting_that_makes_another_program_makes_other_functions(field):
    base = programs.make_program(small())
    assert programs.make_program(small(**{field: STATIC[field]})).chunk is not base.chunk


def test_a_part_of_ones_own_that_is_defined_anew_makes_other_functions(monkeypatch):
    """As in a notebook, whose cells are run again with changes."""
    page = types.ModuleType("page_of_a_notebook")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    page.network, page.method = (lambda features, initial: MLP(features)), Mechanisms()
    config = small(network="page_of_a_notebook:network", method="page_of_a_notebook:method")
    made = programs.make_program(config).chunk
    assert programs.make_program(config).chunk is made
    page.network = lambda features, initial: MLP(features, normalised=True)
    anew = programs.make_program(config).chunk
    assert anew is not made
    page.method = Mechanisms(drop=lambda weight, gradient, key: abs(weight * gradient))
    assert programs.make_program(config).chunk is not anew


def test_numbers_of_links_make_another_packed_program():
    base = programs.make_program(small(compute="packed"))
    assert programs.make_program(small(compute="packed", actor_sparsity=0.5)).chunk is not base.chunk
