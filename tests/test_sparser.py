"""What goes beyond the paper in a run: from sparse to sparser, and grow scores over several batches."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax.analysis import accounting
from rlx2_jax.config import METHODS, methods, presets, resolve
from rlx2_jax.networks.structure import structure
from rlx2_jax.training import evolution, programs
from tests.conftest import assert_sparse, random_batch, small

KEY = jax.random.PRNGKey(0)
SPARSE = {"actor_sparsity": 0.8, "critic_sparsity": 0.75}


def half(row):
    """Configurations of RLx2 at the paper's size, and from sparse to sparser down to half of it."""
    full = presets.make_config((row,), {"method": "rlx2"})
    thin = {name: (1 + getattr(full, name)) / 2 for name in ("actor_sparsity", "critic_sparsity")}
    return full, dataclasses.replace(full, method="sparser", **thin)


@pytest.mark.parametrize("row", presets.ROWS)
def test_it_never_has_more_links_than_the_paper_and_ends_with_half(row):
    sizes = accounting.PAPER_SIZES[row.partition("/")[2]]
    full, sparser = half(row)
    paper, found = (structure(resolve(config), *sizes) for config in (full, sparser))
    same = structure(resolve(dataclasses.replace(sparser, method="rlx2")), *sizes)
    for name in ("actor", "critic"):
        ours, theirs = found[name], paper[name]
        assert ours.links == same[name].links
        assert ours.first_links == ours.start_links == ours.capacities
        for first, end, (inputs, outputs) in zip(ours.first_links, ours.links, ours.shapes, strict=True):
            assert first == min(2 * end, inputs * outputs)
        assert all(first <= most + 1 for first, most in zip(ours.first_links, theirs.links, strict=True))
        assert sum(ours.first_links) <= sum(theirs.links) or row == "sac/ant", "rounding alone, and not in TD3's rows"


def test_it_is_rlx2_but_for_its_numbers_of_links():
    sparser, rlx2 = methods.find("sparser"), METHODS["rlx2"]
    for name in ("kind", "topology", "n_step", "dynamic_buffer", "drop", "grow", "initial", "fraction", "density"):
        assert getattr(sparser, name) == getattr(rlx2, name)
    assert methods.own("sparser") is sparser and "sparser" not in METHODS


def planned(config, name, calls):
    """Links of each matrix after so many optimiser calls, by plain arithmetic."""
    found = structure(config, 1, 1)[name]
    end = 1000 if name == "critic" else 500
    time = calls // config.evolve_interval * config.evolve_interval / end
    left = min(1.0, max(0.0, 1 - (time - 0.2) / 0.6)) ** 3
    return [last + round((first - last) * left) for first, last in zip(found.start_links, found.links, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["packed", "masked"])
def test_links_go_between_20_and_80_percent_of_training(compute):
    config = resolve(small(method="sparser", compute=compute, **SPARSE))
    program = programs.make_program(config)
    state = jax.jit(program.init)(KEY, program.hparams)
    chunk, renew = jax.jit(program.chunk), jax.jit(program.renew)
    seen = {"actor": [], "critic": []}
    for _ in range(6):
        state = chunk(renew(state), program.hparams, program.schedule)
        for name, counts in seen.items():
            network, calls = getattr(state.agent, name), int(getattr(state.progress, f"{name}_calls"))
            assert_sparse(network.masked(), planned(config, name, calls))
            counts.append(planned(config, name, calls))
    for name, (warm, fifth, *between, four_fifths, end) in seen.items():
        found = structure(config, 1, 1)[name]
        assert tuple(warm) == tuple(fifth) == found.first_links
        assert tuple(four_fifths) == tuple(end) == found.links
        assert sum(found.first_links) > sum(between[0]) > sum(between[1]) > sum(found.links)
    # Links move, too.
    assert state.tally.links_grown > 0


def test_the_score_of_several_batches_is_the_mean_of_theirs():
    program = programs.make_program(small())
    agent = program.trainer.agent
    state = jax.jit(program.init)(KEY, program.hparams).agent
    parts = random_batch(0, (3, 16), 1, 1)
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
    # The actor's loss takes no noise, which would be another for each batch.
    of = lambda batch: agent.gradient("actor", state, batch, KEY, program.hparams, jnp.asarray(True))
    each = [of(jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(3)]
    mean = jax.tree.map(lambda *gradients: sum(gradients) / 3, *each)
    chex.assert_trees_all_close(of(whole), mean, rtol=1e-5, atol=1e-7)


def test_an_event_takes_the_batches_that_it_is_told_to():
    found = []
    for changes in ({}, {"score_batches": 3}, {"batch_size": 48}):
        program = programs.make_program(small(**changes, **SPARSE))
        state = jax.jit(program.init)(KEY, program.hparams)
        rng = np.random.default_rng(0)
        draw = lambda like, rng=rng: jnp.asarray(rng.normal(size=like.shape), jnp.float32)
        replay = state.replay.replace(
            observation=draw(state.replay.observation),
            reward=draw(state.replay.reward),
            head=jnp.asarray(state.replay.reward.shape[0], jnp.int32),
        )
        now = dataclasses.replace(state.progress, critic_calls=jnp.int32(150))
        moment = evolution.Moment(now, now, program.hparams, program.schedule, jnp.asarray(False))
        event = jax.jit(functools.partial(evolution.evolve, program.trainer, "critic"))
        agent, told, _ = event(agent=state.agent, replay=replay, moment=moment, key=KEY)
        assert told.dropped == told.grown > 0
        found.append((agent.critic.mask, told))
    one, three, large = found
    chex.assert_trees_all_equal(three, large)
    assert one[1].signal_to_noise != three[1].signal_to_noise


def test_accounting_of_training_counts_the_links_of_every_update():
    config = resolve(small(method="sparser", **SPARSE))
    assert (config.agent, config.updates, config.delay) == ("td3", 1000, 2)
    found, ours = structure(config, 1, 1), accounting.account(config, 1, 1)
    a = np.mean([sum(planned(config, "actor", calls)) for calls in range(500)])
    c = np.mean([sum(planned(config, "critic", calls)) for calls in range(1000)])
    assert c > sum(found["critic"].links), "it has more on the way"
    # The passes of `accounting`, and in an event the gradient of absent weights, too.
    critic, actor, rate = a + 8 * c, 3 * a + 2 * c, 1 / 50
    events = critic + 2 * (ours.critic_weights_dense - c) + (actor + ours.actor_weights_dense - a) / 2
    assert ours.flops_train == pytest.approx(2 * (critic + actor / 2 + rate * events), rel=1e-3)
    assert ours.size == 2 * sum(found["actor"].links) + 4 * sum(found["critic"].links)


def test_accounting_counts_every_batch_of_a_score():
    one, four = (accounting.account(small(score_batches=n, **SPARSE), 5, 2).flops_train for n in (1, 4))
    still = accounting.account(small(topology="fixed", **SPARSE), 5, 2).flops_train
    assert four - still == pytest.approx(4 * (one - still))
