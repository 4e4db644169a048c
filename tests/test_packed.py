"""Training with packed networks: the same agents, methods, events and files as masked, to rounding."""

import dataclasses
import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import kernels, networks, policies
from rlx2_jax.config import PACKED_DEPTH, presets, resolve
from rlx2_jax.errors import ConfigError, WorkdirError
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import structure
from rlx2_jax.runtime import memory, native
from rlx2_jax.training import compute, programs, train
from tests.conftest import ROOT, small
from tests.test_run import final_state, quiet, without_clocks

KEY = jax.random.PRNGKey(0)
SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}
BOTH = ["td3", pytest.param("sac", marks=pytest.mark.slow)]


def chunk_of(config, state=None, chunks=1):
    """The unpacked state after some chunks, from a fresh or given unpacked state."""
    program = programs.make_program(config)
    start = jax.jit(program.init)(KEY, program.hparams) if state is None else state
    if state is not None and config.compute == "packed":
        start = program.pack(state)
    run = jax.jit(program.chunk)
    renew = jax.jit(program.renew)
    for _ in range(chunks):
        start = run(renew(start), program.hparams, program.schedule)
    return jax.jit(programs.unpack)(start)


@pytest.mark.parametrize("agent", BOTH)
def test_packing_a_whole_state_is_exact_both_ways(agent):
    state = chunk_of(small(agent=agent, **SPARSE), chunks=2)
    program = programs.make_program(small(agent=agent, compute="packed", **SPARSE))
    packed = jax.jit(program.pack)(state)
    chex.assert_trees_all_equal(jax.jit(programs.unpack)(packed), state)
    assert isinstance(packed.agent.critic, networks.Packed) and isinstance(packed.agent.actor, networks.Packed)


@pytest.mark.parametrize(
    "method", ["rlx2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("dense", "tiny", "ss", "set", "rigl"))]
)
def test_every_method_starts_the_same_and_stays_on_its_links(method):
    config = small(method=method, **SPARSE)
    packed = dataclasses.replace(config, compute="packed")
    program = programs.make_program(packed)
    fresh = programs.unpack(jax.jit(program.init)(KEY, program.hparams))
    masked = programs.make_program(config)
    chex.assert_trees_all_equal(fresh, jax.jit(masked.init)(KEY, masked.hparams))
    # Warm-up, learning, and an event of each network.
    after = chunk_of(packed, chunks=3)
    for name in ("actor", "critic"):
        before, now = getattr(fresh.agent, name), getattr(after.agent, name)
        counts = [k.sum((-2, -1)).tolist() for k in masking.kernels(before.mask)]
        assert [k.sum((-2, -1)).tolist() for k in masking.kernels(now.mask)] == counts
        same = [
            bool((a == b).all()) for a, b in zip(masking.kernels(before.mask), masking.kernels(now.mask), strict=True)
        ]
        assert all(same) == (method in ("dense", "tiny", "ss"))
        assert not jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda a, b: (a == b).all(), before, now))


@pytest.mark.parametrize("agent", BOTH)
def test_packed_learns_what_masked_learns_until_rounding_tells(agent):
    """From one state, through updates, an event of each network and multi-step targets."""
    config = small(agent=agent, **SPARSE)
    warm = chunk_of(config, chunks=1)
    masked = chunk_of(config, warm)
    packed = chunk_of(dataclasses.replace(config, compute="packed"), warm)
    chex.assert_trees_all_equal(masked.progress, packed.progress)
    assert masked.progress.critic_calls > 0 and masked.tally.links_grown > 0
    for name in ("actor", "critic"):
        ours, theirs = getattr(packed.agent, name), getattr(masked.agent, name)
        chex.assert_trees_all_equal(ours.mask, theirs.mask)
        chex.assert_trees_all_close(ours.params, theirs.params, rtol=2e-3, atol=2e-4)
        chex.assert_trees_all_close(ours.target, theirs.target, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(packed.tally.learning["critic_loss"], masked.tally.learning["critic_loss"], rtol=1e-2)


def test_a_run_in_either_way_resumes_in_the_other(tmp_path):
    masked = small(**SPARSE)
    packed = dataclasses.replace(masked, compute="packed")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    result = quiet(packed, whole)
    assert json.loads((whole / "summary.json").read_text())["compute"] == "packed"
    for i, config in enumerate((packed, masked, packed)):
        stop_after = None if i == 2 else i + 1
        result_i = _run_until(config, halves, stop_after, resume=i > 0)
    assert result_i.finished and len(result_i.rows) == len(result.rows)
    step, state = final_state(halves, masked)
    whole_step, expected = final_state(whole, packed)
    assert step == whole_step == 1200
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.agent))
    # They took up the state that was there: all that does not depend on rounding is as in one go.
    chex.assert_trees_all_equal(state.progress, expected.progress)
    np.testing.assert_array_equal(state.replay.head, expected.replay.head)
    assert [row["env_steps"] for row in result_i.rows] == [400, 800, 1200]
    assert without_clocks(result_i.rows[:1]) == without_clocks(result.rows[:1])


def test_a_packed_run_resumes_exactly_and_its_policy_is_dense(tmp_path):
    config = small(compute="packed", **SPARSE)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    uninterrupted = quiet(config, whole)
    _run_until(config, halves, 2)
    resumed = quiet(config, halves, resume=True)
    chex.assert_trees_all_equal(final_state(halves, config)[1], final_state(whole, config)[1])
    assert without_clocks(resumed.rows) == without_clocks(uninterrupted.rows)
    policy = policies.load(whole / "policy.npz")
    assert policy.params["Dense_1"]["kernel"].shape == (16, 16)
    actor = jax.jit(programs.make_program(config).pack)(final_state(whole, config)[1]).agent.actor
    observation = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    expected = programs.make_program(config).agent.mode(actor, observation)
    np.testing.assert_allclose(policy.act(observation), expected, atol=1e-6)


def _run_until(config, workdir, evaluations, resume=False):
    """A run that is asked to stop after so many evaluations, as by Ctrl-C."""
    import signal

    def stop(rows):
        if evaluations is not None and len(rows) == evaluations:
            signal.raise_signal(signal.SIGINT)

    return quiet(config, workdir, resume=resume, on_report=stop)


def test_what_packed_cannot_keep_is_refused_or_computed_masked():
    with pytest.raises(ConfigError, match="reset_moments=False needs values off the links"):
        resolve(presets.make_config(("release",), {"compute": "packed"}))
    lines = []
    assert compute.choose(resolve(presets.make_config(("release",), {"compute": "auto"})), lines.append).compute == (
        "masked"
    )


def test_training_state_at_hoppers_row_is_a_fraction_of_dense():
    sizes = {}
    for way in ("masked", "packed"):
        program = programs.make_program(presets.make_config(("td3/hopper",), {"compute": way, "buffer_max": 100_000}))
        agent = jax.eval_shape(program.init, KEY, program.hparams).agent
        if way == "masked":  # The dense agent has no masks.
            agent = agent.replace(actor=agent.actor.replace(mask=None), critic=agent.critic.replace(mask=None))
        sizes[way] = memory.tree_bytes(agent)
    assert sizes["packed"] < 0.12 * sizes["masked"]


@pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels were not built")
def test_auto_measures_the_machine_once_and_decides_by_density(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "MEASURED_SECONDS", 0.05)
    cache = tmp_path / "deep" / "compute.json"
    config = resolve(small(compute="auto", **SPARSE))
    lines = []
    chosen = compute.choose(config, lines.append, cache)
    assert chosen.compute in ("masked", "packed") and dataclasses.replace(chosen, compute="auto") == config
    ((key, even),) = json.loads(cache.read_text()).items()
    assert even > 0 and lines[0].startswith(f"compute: {chosen.compute}, because")
    monkeypatch.setattr(compute, "race", None)
    network = structure(config, 1, 1)
    links = sum(sum(n.links) for n in network.values())
    density = links / sum(i * o for n in network.values() for i, o in n.shapes)
    for remembered, expected in ((0.99 * density, "masked"), (1.01 * density, "packed")):
        cache.write_text(json.dumps({key: remembered}))
        assert compute.choose(config, lines.append, cache).compute == expected
    assert compute.choose(resolve(small(compute="auto", method="dense")), lines.append, cache).compute == "masked"
    deep = resolve(small(compute="auto", hidden=(8,) * (PACKED_DEPTH + 1), **SPARSE))
    assert compute.choose(deep, lines.append, cache).compute == "masked"


def test_a_run_that_cannot_be_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(compute, "race", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError):
        quiet(small(compute="auto", **SPARSE), tmp_path / "file")


def test_an_unusable_cache_is_no_obstacle(tmp_path):
    bad = tmp_path / "file"
    bad.write_text("[")
    assert compute._read(bad) == {}
    compute._write(bad / "below", {"a": 1.0})


def test_without_the_native_kernels_packed_trains_portably_and_says_so(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)
    lines = []
    config = small(compute="packed", **SPARSE)
    assert compute.choose(resolve(config), lines.append).compute == "packed"
    assert lines == [kernels.MISSING] and "install a compiler of C++17" in lines[0]
    assert compute.choose(resolve(small(compute="auto")), lines.append).compute == "masked"
    # What was traced before has native calls in it.
    programs._make_functions.cache_clear()
    try:
        program = programs.make_program(config)
        state = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
        assert "rlx2_" not in jax.jit(program.chunk).lower(state, program.hparams, program.schedule).as_text()
        result = train(config, show_progress=False)
    finally:
        programs._make_functions.cache_clear()
    assert result.finished and np.isfinite(result.summary["score"])


def test_packed_twins_are_mapped_in_one_call():
    """The two critics run side by side, not one after the other."""
    program = programs.make_program(small(compute="packed", **SPARSE))
    state = jax.eval_shape(program.init, KEY, program.hparams)
    text = jax.jit(program.learn).lower(state.agent, state.replay, KEY, program.hparams, True).as_text()
    calls = text.count(native.FORWARD), text.count(native.BACKWARD)
    # Forward: twice target actor, target critics, critics; actor, critic. Backward: twice critics; critic, actor.
    assert calls == ((8, 4) if kernels.native_available() else (0, 0))


@pytest.mark.slow
def test_both_ways_move_the_same_links_until_rounding_tells_them_apart():
    command = [sys.executable, "-m", "tests.divergence", "20000", str(ROOT / ".cache" / "jax")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Several events moved the same links, and weights were no further apart than rounding grows when masks first part.
    assert found["links_moved"] > 10_000 and found["weights_before"] < 0.1
    assert found["links"] < 100


def test_counts_are_those_of_the_configuration():
    program = programs.make_program(small(compute="packed", **SPARSE))
    state = jax.eval_shape(program.init, KEY, program.hparams)
    assert [links.capacity for links in state.agent.actor.links] == [int(n) for n in program.hparams.actor_links]
    assert [links.capacity for links in state.agent.critic.links] == [int(n) for n in program.hparams.critic_links]
