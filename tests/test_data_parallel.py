"""One run over several devices: the run on one, to rounding, with the same masks on all of them, or an error."""

import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax.agents import make_agent
from rlx2_jax.agents.td3 import TD3
from rlx2_jax.config import resolve
from rlx2_jax.errors import ConfigError, DivergedError
from rlx2_jax.io import files
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.runtime import devices
from rlx2_jax.runtime.devices import AXIS, ONE_DEVICE, DataParallel
from rlx2_jax.sweeps import plans
from rlx2_jax.training import programs
from rlx2_jax.training.imitation import make_cloning
from tests.conftest import (
    PAPER_AGENTS,
    assert_finite,
    cached,
    equations,
    launch,
    launch_here,
    random_batch,
    shown,
    small,
)
from tests.test_run import final_state, flags_of, quiet, without_clocks

DEVICES = 8
FORCED = shown(DEVICES)

KEY = jax.random.PRNGKey(0)


@functools.cache
def on_many_devices():
    """A process that has 8 devices, for all tests that need them: what one compiled, another finds."""
    with mock.patch.dict(os.environ, XLA_FLAGS=FORCED):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        assert pool.submit(jax.device_count).result(120) == DEVICES
    return pool


@pytest.fixture(scope="module", autouse=True)
def _no_process_left():
    yield
    if on_many_devices.cache_info().currsize:
        on_many_devices().shutdown()
        on_many_devices.cache_clear()


def call(name, parameters):
    """Run a test's own function; for another process, which cannot be sent what a decorator has replaced."""
    globals()[name].__wrapped__(**parameters)


def over_devices(test):
    """A test that runs where there are 8 devices."""

    @functools.wraps(test)
    def run(**parameters):
        on_many_devices().submit(call, test.__name__, parameters).result(600)

    return run


def config(**changes):
    """Events of both networks every few iterations, and 3-step targets after some of them."""
    settings = {
        # Targets bootstrap, so that their noise counts, and observations differ, so that the actor's batch does.
        "env": "probe/chain",
        "batch_size": 64,
        "total_steps": 800,
        "evolve_interval": 40,
        "n_step_delay": 100,
        "actor_sparsity": 0.5,
        "critic_sparsity": 0.5,
        # So large that what one device did otherwise would soon show in the values.
        "critic_lr": 3e-3,
        "actor_lr": 3e-3,
        "alpha_lr": 3e-3,
    }
    return small(**(settings | changes))


def trained(**changes):
    """The states after 400 and 800 steps, on the devices."""
    program = programs.make_program(config(**changes))
    chunk = jax.jit(lambda state: program.chunk(program.renew(state), program.hparams, program.schedule))
    state = jax.jit(program.init)(KEY, program.hparams)
    early = chunk(chunk(state))
    return early, chunk(chunk(early))


def assert_same_everywhere(state, count):
    """All of a state is on all devices, bit by bit."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert first.shape == leaf.shape
        assert len(others) == count - 1
        for other in others:
            assert other.tobytes() == first.tobytes(), jax.tree_util.keystr(path)


def assert_same_masks(found, expected):
    """The same links of both networks."""
    both = [programs.unpack(jax.device_get(state)).agent for state in (found, expected)]
    for name in ("actor", "critic"):
        chex.assert_trees_all_equal(*(getattr(agent, name).mask for agent in both))


def assert_same_run(found, expected):
    """Masks and counts exactly, values to rounding."""
    found, expected = (jax.device_get(jax.jit(programs.unpack)(state)) for state in (found, expected))
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)

    def compare(path, a, b):
        name = jax.tree_util.keystr(path)
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, name)

    jax.tree_util.tree_map_with_path(compare, found, expected)


CASES = [
    pytest.param("td3", "masked", (2,)),
    pytest.param("td3", "packed", (8,), marks=pytest.mark.slow),
    pytest.param("sac", "masked", (4,), marks=pytest.mark.slow),
    pytest.param("sac", "packed", (2,), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("agent", PAPER_AGENTS)
@over_devices
def test_grow_scores_are_those_of_the_whole_batch(agent):
    c = resolve(config(agent=agent, data_parallel=4))
    whole = make_agent(dataclasses.replace(c, data_parallel=1), 3, 2)
    four, shared = DataParallel(4), make_agent(c, 3, 2)
    hparams = make_hparams(c, 3, 2)
    state = jax.jit(whole.init)(KEY, hparams)
    batch = random_batch(0, (64,), 3, 2)
    for name in ("critic", "actor"):
        alone = jax.jit(functools.partial(whole.gradient, name))(state, batch, KEY, hparams, jnp.asarray(True))
        gradient = functools.partial(shared.gradient, name)

        def own(batch, gradient=gradient):
            batch = jax.tree.map(lambda x: four.local_shard(x, 0), batch)
            return gradient(state, batch, KEY, hparams, jnp.asarray(True))

        together = jax.jit(four.over_devices(own))(batch)
        chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-6)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone)) > 1e-2


@pytest.mark.parametrize(("agent", "compute", "counts"), CASES)
@over_devices
def test_a_run_over_devices_is_the_run_on_one(agent, compute, counts):
    early, late = trained(agent=agent, compute=compute)
    assert late.apart is None
    assert late.tally.links_grown > early.tally.links_grown > 50
    for count in counts:
        states = trained(agent=agent, compute=compute, data_parallel=count)
        for state in states:
            assert state.apart == 0
            assert_same_everywhere(state, count)
            assert_finite(state.agent)
        # Values early: Adam makes a step of a gradient that is nothing but rounding, and later there are such.
        assert_same_run(states[0], early)
        assert_same_masks(states[1], late)


@over_devices
def test_each_device_has_its_own_slice_of_what_one_would_draw():
    four = DataParallel(4)
    x = jnp.arange(24.0).reshape(2, 12)

    def parts(x):
        own = four.local_shard(x, 1)
        noise = four.normal(KEY, (2, 3), axis=1)
        index = jax.lax.axis_index(AXIS)
        means = four.mean({"own": own, "index": 1.0 * index})
        return (
            own,
            noise,
            jax.tree.map(lambda m: m[None], means),
            four.mismatch(index)[None],
            four.mismatch(x.sum())[None],
        )

    spec = jax.sharding.PartitionSpec
    collect = jax.shard_map(
        parts,
        mesh=four.sharding.mesh,
        in_specs=spec(),
        out_specs=(spec(None, AXIS), spec(None, AXIS), spec(AXIS), spec(AXIS), spec(AXIS)),
        check_vma=False,
    )
    own, noise, means, differ, same = jax.jit(collect)(x)
    np.testing.assert_array_equal(own, x)
    np.testing.assert_array_equal(noise, jax.random.normal(KEY, (2, 12)))
    np.testing.assert_array_equal(means["own"], np.broadcast_to(x.reshape(2, 4, 3).mean(1), (4, 2, 3)))
    np.testing.assert_array_equal(means["index"], [1.5] * 4)
    np.testing.assert_array_equal(differ, [1] * 4)
    np.testing.assert_array_equal(same, [0] * 4)


def test_one_device_has_everything_and_exchanges_nothing():
    x = jnp.arange(6.0)
    assert ONE_DEVICE.local_shard(x, 0) is x
    assert ONE_DEVICE.mean(x) is x
    assert ONE_DEVICE.mismatch(x) is None
    assert ONE_DEVICE.over_devices(devices) is devices
    assert ONE_DEVICE.sharding is None
    np.testing.assert_array_equal(ONE_DEVICE.normal(KEY, (3, 2)), jax.random.normal(KEY, (3, 2)))


@over_devices
def test_branches_stay_branches_and_devices_meet_in_nothing_that_is_not_due():
    for agent in PAPER_AGENTS:
        found = []
        for count in (1, 2):
            p = programs.make_program(config(agent=agent, data_parallel=count))
            state = jax.eval_shape(p.init, KEY, p.hparams)
            found.append(list(equations(jax.make_jaxpr(p.chunk)(state, p.hparams, p.schedule).jaxpr)))
        branches = [sum(name == "cond" for name, _ in equations) for equations in found]
        assert branches[0] == branches[1] >= 4
        names = [{name for name, _ in equations} for equations in found]
        assert not names[0] & {"shard_map", "psum", "pmin", "pmax", "axis_index"}
        assert {"shard_map", "psum", "pmin", "pmax", "axis_index"} <= names[1]
        meetings = [inside for name, inside in found[1] if name in ("psum", "pmin", "pmax")]
        assert all("cond" in inside for inside in meetings)
        assert [name for name, _ in found[1]].count("pmin") == 2, "a checksum for each network's events"


def test_a_checksum_sees_every_link():
    rng = np.random.default_rng(0)
    tree = {f"Dense_{i}": {"kernel": jnp.asarray(rng.random((2, 7, 5)) < 0.4)} for i in range(2)}
    checksum = jax.jit(masking.checksum)
    seen = {int(checksum(tree))}
    places = [(name, place) for name in tree for place in np.ndindex(2, 7, 5)]
    for name, place in places:
        kernel = tree[name]["kernel"]
        seen.add(int(checksum(tree | {name: {"kernel": kernel.at[place].set(~kernel[place])}})))
    assert len(seen) == len(places) + 1
    # Two links that change rows with one another: the sum of their positions would stay.
    crossed = [
        jnp.zeros((4, 4), bool).at[rows, columns].set(True) for rows, columns in (([0, 1], [0, 1]), ([0, 1], [1, 0]))
    ]
    assert len({int(checksum({"Dense_0": {"kernel": kernel}})) for kernel in crossed}) == 2


class Unlike(TD3):
    """An agent whose critic's grow scores are not the same on all devices."""

    def gradient(self, name, *arguments):
        gradient = super().gradient(name, *arguments)
        key = jax.random.fold_in(KEY, jax.lax.axis_index(AXIS))
        return jax.tree.map(lambda g: g + jax.random.normal(key, g.shape), gradient)


@pytest.mark.slow
@over_devices
def test_the_c_librarys_simulations_are_the_same_on_all_devices():
    _, state = trained(env="Hopper-v4", data_parallel=2)
    assert_same_everywhere(state, 2)
    assert_finite(state)
    assert int(state.progress.env_steps) == 800 and not int(state.apart)


@pytest.mark.slow
@over_devices
def test_devices_that_choose_different_links_end_the_run(tmp_path):
    sentence = (
        r"^2 devices chose different links between steps 200 and 400 \(\d topology events\), so they no longer train "
        r"one network; the checkpoint at step 200 is kept; .* --resume --data_parallel=1\.$"
    )
    run = config(data_parallel=2, checkpoint_every=200)
    uneven = mock.patch.object(programs, "make_agent", Unlike)
    anew = mock.patch.object(programs, "_make_functions", programs._make_functions.__wrapped__)
    with uneven, anew, pytest.raises(DivergedError, match=sentence):
        quiet(run, tmp_path)
    step, _ = final_state(Path(tmp_path), run)
    assert step == 200


@pytest.mark.slow
@over_devices
def test_a_stopped_run_goes_on_bit_for_bit_on_as_many_devices_and_to_rounding_on_others(tmp_path):
    tmp_path = Path(tmp_path)
    shared = config(data_parallel=2)
    whole = quiet(shared, tmp_path / "whole")
    step, expected = final_state(tmp_path / "whole", shared)
    assert step == 800
    stopped = quiet(shared, tmp_path / "same", on_report=lambda rows: os.kill(os.getpid(), signal.SIGTERM))
    assert not stopped.finished
    assert stopped.summary["env_steps"] == 400
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    assert quiet(shared, tmp_path / "same", resume=True).finished
    rows = files.read_json_lines(tmp_path / "same" / "metrics.jsonl")
    assert without_clocks(rows) == without_clocks(whole.rows)
    chex.assert_trees_all_equal(final_state(tmp_path / "same", shared)[1], expected)
    assert quiet(config(), tmp_path / "other", resume=True).finished
    assert_same_masks(final_state(tmp_path / "other", shared)[1], expected)


@pytest.mark.slow
@over_devices
def test_a_whole_run_as_one_function_lies_over_devices_by_itself():
    short = {"total_steps": 400, "eval_every": 200, "chunk_steps": 100}
    alone = jax.jit(programs.make_train(config(**short)))
    shared = jax.jit(programs.make_train(config(**short, data_parallel=2)))
    expected, found = alone(KEY), shared(KEY)
    assert_same_run(found[0], expected[0])
    assert_same_everywhere(found, 2)
    chex.assert_trees_all_close(found[1], expected[1], rtol=1e-3, atol=1e-3)
    many = jax.jit(jax.vmap(programs.make_train(config(**short, data_parallel=2))))
    states, _ = many(jnp.stack([KEY, jax.random.PRNGKey(1)]))
    assert_same_run(jax.tree.map(lambda x: x[0], states), expected[0])


def test_what_cannot_be_shared_out_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"^data_parallel=0: use at least 1\.$"):
        resolve(small(data_parallel=0))
    with pytest.raises(ConfigError, match=r"^batch_size=16 is not divided by data_parallel=3 devices; .* of 18\.$"):
        resolve(small(data_parallel=3))
    many = 2 * jax.device_count()
    with pytest.raises(ConfigError, match=rf"^data_parallel={many}: this machine shows .*device_count={many}\)\.$"):
        programs.make_program(small(batch_size=8 * many, data_parallel=many))
    with pytest.raises(ConfigError, match=r"^data_parallel=2: a clone is made on one device; leave it out\.$"):
        make_cloning(small(data_parallel=2), None)
    for parallel in plans.PARALLEL:
        with pytest.raises(
            ConfigError, match=r"^data_parallel=2: a sweep gives each run to one device; .*train\.py\.$"
        ):
            plans.lay_out([resolve(small()), resolve(small(data_parallel=2))], parallel=parallel)


@pytest.mark.slow
def test_the_launcher_trains_over_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", FORCED)
    done = launch("train.py", *flags_of(config(data_parallel=2)), "--workdir=run", cached(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "masked compute, cpu x 2" in done.stderr
    rows = files.read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["env_steps"] for row in rows] == [400, 800]
    assert rows[-1]["links_grown"] > 0
    monkeypatch.delenv("XLA_FLAGS")
    resumed = launch_here(
        "train.py", *flags_of(config(data_parallel=2)), "--workdir=run", "--resume", cached(), cwd=tmp_path
    )
    assert resumed.returncode == 2
    assert resumed.stderr.startswith("error: data_parallel=2: this machine shows 1 cpu devices; ")
    assert resumed.stderr.count("\n") == 1
