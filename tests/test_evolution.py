"""What an iteration of a run does beside learning: its events and buffer checks are those that its settings say."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax.replay import buffer
from rlx2_jax.sparse import topology
from rlx2_jax.training import evolution, programs, steps
from tests.conftest import small

KEY = jax.random.PRNGKey(0)
SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}


def learned(**changes):
    """A program, its agent after some updates, and a replay of random experience."""
    program = programs.make_program(small(**SPARSE | changes))
    state = jax.jit(program.init)(KEY, program.hparams)
    rng = np.random.default_rng(0)
    draw = lambda like, low=-1.0: jnp.asarray(rng.uniform(low, 1, like.shape), jnp.float32)
    held = state.replay
    replay = held.replace(
        observation=draw(held.observation),
        action=draw(held.action),
        mean=draw(held.mean),
        reward=draw(held.reward),
        head=jnp.asarray(held.reward.shape[0], jnp.int32),
    )
    agent = state.agent
    for key in jax.random.split(KEY, 3):
        agent, _ = jax.jit(program.learn)(agent, replay, key, program.hparams, jnp.asarray(False))
    now = dataclasses.replace(state.progress, critic_calls=jnp.int32(150), actor_calls=jnp.int32(75))
    return program, agent, replay, evolution.Moment(now, now, program.hparams, program.schedule, jnp.asarray(False))


@pytest.mark.parametrize("name", ["critic", "actor"])
@pytest.mark.parametrize("changes", [{}, {"reset_moments": False}, {"method": "set"}], ids=str)
def test_an_event_of_a_run_is_that_of_its_settings(changes, name):
    program, agent, replay, moment = learned(**changes)
    config, trainer, h = program.config, program.trainer, program.hparams
    event = jax.jit(functools.partial(evolution.evolve, trainer, name))
    found, told, _ = event(agent=agent, replay=replay, moment=moment, key=KEY)
    batch_key, gradient_key, grow_key = jax.random.split(KEY, 3)
    batch = trainer.sample(replay, batch_key, (config.batch_size,), h, moment.multi_step)
    gradient = trainer.agent.gradient(name, agent, batch, gradient_key, h, moment.multi_step)
    _, calls, end = moment.calls(name)
    fraction = topology.drop_fraction_at(h.drop_fraction, calls, end)
    before = getattr(agent, name)
    expected, dropped, grown = before.evolve(
        gradient, grow_key, fraction, h.grow_gradient, reset_moments=config.reset_moments
    )
    assert (told.dropped, told.grown) == (dropped, grown) and grown > 0
    after = getattr(found, name)
    chex.assert_trees_all_equal(after.mask, expected.mask)
    chex.assert_trees_all_close((after.params, after.target, after.adam), tuple(
        getattr(expected, part) for part in ("params", "target", "adam")
    ))  # fmt: skip
    # Moments of links that are gone are kept or not.
    kernels = lambda tree: tree["Dense_1"]["kernel"]
    gone = np.asarray(kernels(before.mask) & ~kernels(after.mask))
    assert np.asarray(kernels(after.adam.nu))[gone].any() == (not config.reset_moments)


@pytest.mark.parametrize(("distance", "drop_rule"), itertools.product(("half_mse", "l2"), ("once", "until_close")))
def test_a_buffer_check_of_a_run_is_that_of_its_settings(distance, drop_rule):
    settings = {"distance": distance, "drop_rule": drop_rule, "distance_threshold": 0.05, "drop_ratio": 0.05}
    program, agent, replay, _ = learned(**settings, batch_size=8)
    h = program.hparams
    check = jax.jit(functools.partial(steps.check_buffer, program.trainer))
    found, left = check(agent, replay, h, jnp.asarray(True))
    act = lambda observation: program.agent.mode(agent.actor, observation)
    # Of 8 batches of the oldest.
    count = 8 * program.config.batch_size
    observation, action, mean, weight = buffer.oldest(replay, count)
    now = act(observation)
    apart = 0.5 * ((now - mean) ** 2).mean(-1) if distance == "half_mse" else jnp.linalg.norm(now - action, axis=-1)
    assert float(found) == pytest.approx(float((apart * weight).sum() / weight.sum()), rel=1e-5)
    assert found > h.distance_threshold, "random actions are far"
    kept = int(buffer.size(replay.replace(left=left)))
    if drop_rule == "once":
        assert kept == pytest.approx(int(buffer.size(replay)) * (1 - float(h.drop_ratio)), abs=replay.reward.shape[1])
    else:
        assert kept < int(buffer.size(replay)) - count, "further ones are as far"
    # A buffer that is not dynamic, and one before any update, keep all.
    for fixed, learning in ((True, True), (False, False)):
        other = h.replace(dynamic_buffer=h.dynamic_buffer & ~jnp.asarray(fixed))
        assert check(agent, replay, other, jnp.asarray(learning))[1] == replay.left
