"""Runs over devices: branches that stay branches, by the program's text and by the clock."""

import jax
import numpy as np
import pytest

from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.sweeps.layout import ROWS, STATE, Layout, compile_batch
from rlx2_jax.sweeps.plans import build, common_schedule, product
from tests.conftest import TD3_THEN_SAC, census, small

RUNS = 3


def arguments(layout, configs, axes=STATE):
    """Program, functions and arguments of a batch of runs."""
    program, schedule = build(configs), common_schedule(configs)
    keys = layout.put(np.stack([jax.random.PRNGKey(c.seed) for c in configs]))
    hparams = [make_hparams(c, 1, 1) for c in configs]
    hparams = layout.put(jax.tree.map(lambda *leaves: np.stack(leaves), *hparams))
    init = layout.map(program.init, (ROWS, ROWS), axes, donate=False)
    return program, init(keys, hparams), hparams, layout.put(schedule, None)


@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_every_branch_of_a_chunk_stays_a_branch_over_devices(agent, parallel):
    layout = Layout(jax.devices()[:1], parallel)
    program, state, hparams, schedule = arguments(layout, product(small(agent=agent), seeds=range(RUNS)))
    one = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
    alone = census(program.chunk, one, program.hparams, program.schedule)
    sweep = layout.map(program.chunk, (STATE, ROWS, None), STATE, donate=False)
    assert census(sweep, state, hparams, schedule) == alone
    assert alone[0] >= 4, "learning, two events, buffer check"
    batched = layout.map(program.chunk, (ROWS, ROWS, None), ROWS, donate=False)
    state = state.replace(progress=jax.tree.map(lambda x: layout.put(np.zeros(RUNS, np.int32)), state.progress))
    branches, products = census(batched, state, hparams, schedule)
    assert branches < alone[0], "what this test would see if progress were batched"
    assert products > alone[1]


def test_rows_come_back_in_order_and_a_compiled_batch_takes_them():
    layout = Layout(jax.devices()[:1])
    configs = product(small(), seeds=[4, 5, 6])
    program, state, hparams, schedule = arguments(layout, configs)
    compiled = compile_batch(layout, program, schedule, RUNS)
    assert layout.local_rows(RUNS) == [0, 1, 2]
    keys = [jax.random.split(jax.random.PRNGKey(seed))[1] for seed in (4, 5, 6)]
    np.testing.assert_array_equal(layout.gather(state.key), keys)
    np.testing.assert_array_equal(layout.local(state.key), keys)
    state, reports = compiled.report(compiled.chunk(compiled.renew(state), hparams, schedule), hparams, schedule)
    np.testing.assert_array_equal(layout.gather(reports)["env_steps"], [200] * RUNS)
    assert layout.gather(compiled.finite(state)).all()
    assert state.progress.env_steps.shape == ()
