"""Behaviour cloning: a sparse actor reaches its teacher, and its topology moves or stays as asked."""

import dataclasses
import functools
import json
import signal
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import policies
from rlx2_jax.config import resolve
from rlx2_jax.errors import CheckpointError, ConfigError, DivergedError, WorkdirError
from rlx2_jax.io import files
from rlx2_jax.networks import masking
from rlx2_jax.policies import tickets
from rlx2_jax.sparse import topology
from rlx2_jax.sweeps import workers
from rlx2_jax.training import clone, make_program, train
from rlx2_jax.training.imitation import Examples, make_cloning
from rlx2_jax.training.signals import StopSignals
from tests.conftest import PAPER_AGENTS, assert_sparse, assert_zero_off_mask, links_of, small


def teacher(slope=0.5, bias=0.0, observation_size=1):
    """A policy of two hidden units that answers s with about `slope * s + bias`."""
    first = jnp.zeros((observation_size, 2)).at[0].set(jnp.array([1.0, -1.0]))
    params = {
        "Dense_0": {"kernel": first, "bias": jnp.zeros(2)},
        "Dense_1": {"kernel": slope * jnp.array([[1.0], [-1.0]]), "bias": jnp.full(1, bias)},
    }
    return policies.Policy(params, policies.describe(resolve(small(hidden=(2,))), 0, None))


def cloned(**changes):
    """A clone of 900 updates in three evaluations, with events every 100 until the 600th."""
    lengths = {"total_steps": 900, "eval_every": 300, "chunk_steps": 100, "evolve_interval": 100, "buffer_max": 500}
    more = {"actor_sparsity": 0.5, "actor_lr": 3e-3, "evolve_until": 2 / 3}
    return small(**(lengths | more | changes))


@functools.cache
def compiled(**changes):
    """A clone's functions, jitted, with its first state and examples of the teacher."""
    cloning = make_cloning(cloned(**changes), teacher())
    key = jax.random.PRNGKey(0)
    state, first = jax.jit(cloning.init)(key)
    examples = jax.jit(cloning.collect)(teacher().params, key)
    parts = {name: jax.jit(getattr(cloning, name)) for name in ("update", "learn", "report")}
    return types.SimpleNamespace(config=cloning.config, **parts), state, first, examples


@functools.cache
def result(**changes):
    return clone(cloned(**changes), teacher())


@pytest.mark.parametrize("changes", [{}, {"agent": "sac"}, {"compute": "packed"}])
def test_a_sparse_actor_learns_to_act_as_its_teacher(changes):
    found = result(**changes)
    observation = jnp.linspace(-1, 1, 21)[:, None]
    np.testing.assert_allclose(found.policy.act(observation), teacher().act(observation), atol=0.05)
    assert [row["updates"] for row in found.rows] == [300, 600, 900]
    assert found.rows[-1]["loss"] < 1e-4 < found.rows[0]["loss"]
    assert found.rows[-1]["return_mean"] > 0.99
    assert all(np.isfinite(list(row.values())).all() for row in found.rows)


def test_it_imitates_this_teacher_and_no_other():
    worse = clone(cloned(method="ss"), teacher(slope=-1.0, bias=0.3))
    observation = jnp.linspace(-1, 1, 21)[:, None]
    np.testing.assert_allclose(worse.policy.act(observation), teacher(-1.0, 0.3).act(observation), atol=0.1)
    assert worse.rows[-1]["return_mean"] < 0.7, "though the task pays for something else"


def test_examples_are_the_teachers_noise_free_actions_where_its_noise_leads():
    # On this task observations do not depend on actions; on the pendulum they do.
    reached = {}
    for noise in (0.0, 0.5):
        config = cloned(env="InvertedPendulum-v4", explore_noise=noise, episode_length=50)
        wide = teacher(observation_size=4)
        examples = jax.jit(make_cloning(config, wide).collect)(wide.params, jax.random.PRNGKey(0))
        assert examples.observation.shape == (500, 4)
        assert examples.action.shape == (500, 1)
        np.testing.assert_allclose(examples.action, wide.act(examples.observation), atol=1e-6)
        reached[noise] = np.asarray(examples.observation)
    np.testing.assert_array_equal(reached[0.0][:4], reached[0.5][:4])
    assert np.std(reached[0.5][:, 3]) > 1.2 * np.std(reached[0.0][:, 3])


@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_the_actor_begins_as_that_of_the_run_with_the_same_configuration(agent):
    config = cloned(agent=agent)
    program = make_program(config)
    run = jax.jit(program.init)(jax.random.PRNGKey(0), program.hparams)
    _, state, first, _ = compiled(agent=agent)
    chex.assert_trees_all_equal(state.actor.mask, run.agent.actor.mask)
    chex.assert_trees_all_close(state.actor.params, run.agent.actor.params, atol=1e-7, rtol=0)
    chex.assert_trees_all_equal(first, {"actor": run.agent.actor.mask, "critic": run.agent.critic.mask})


@pytest.mark.parametrize(
    "changes", [{}, {"method": "set"}, {"method": "ss"}, {"compute": "packed"}, {"method": "dense"}]
)
def test_events_move_links_and_keep_their_number_until_they_end(changes):
    cloning, state, first, examples = compiled(**changes)
    counts = links_of(first["actor"])
    moving = changes.get("method") not in ("ss", "dense")
    for late in (False, False, True):
        before = masking.kernels(state.actor.masked().mask)
        learned = cloning.learn(state, examples)
        actor = learned.actor.masked()
        assert_sparse(actor, counts)
        moved = sum(np.sum(a & ~b) for a, b in zip(before, masking.kernels(actor.mask), strict=True))
        assert (moved > 0) == (moving and not late)
        state, row = cloning.report(learned)
        assert int(row["links_dropped"]) == int(row["links_grown"])
        assert (int(row["links_dropped"]) > 0) == (moving and not late)
        assert float(row["loss"]) > 0
        assert int(state.links_grown) == 0


def test_an_event_grows_the_links_of_largest_gradient_of_the_error_at_the_rate_of_the_schedule():
    # One example alone, so that any batch is the whole of them, and its gradient known.
    cloning, state, _, _ = compiled(batch_size=16)
    one = Examples(jnp.full((500, 1), 0.7), jnp.full((500, 1), 0.9))
    hparams = make_program(cloning.config).hparams
    agent = make_program(cloning.config).agent
    single = lambda state: cloning.update(state, one)

    def error(params, actor):
        return jnp.mean((agent.mode(actor.replace(params=params), one.observation) - one.action) ** 2)

    state = state.replace(updates=jnp.int32(98))
    quiet = single(state)
    chex.assert_trees_all_equal(quiet.actor.mask, state.actor.mask)
    event = single(quiet)
    gradient = jax.grad(error)(quiet.actor.params, quiet.actor)
    stepped = quiet.actor.apply_gradients(gradient, hparams.actor_lr)
    gradient = jax.grad(error)(stepped.params, stepped)
    fraction = topology.drop_fraction_at(hparams.drop_fraction, jnp.int32(100), jnp.int32(600))
    expected = stepped.evolve(gradient, jax.random.key(9), fraction, True, reset_moments=True)[0]
    chex.assert_trees_all_equal(event.actor.mask, expected.mask)
    chex.assert_trees_all_close(event.actor.params, expected.params, atol=1e-6)
    assert int(event.links_grown) > 0


def test_the_same_seed_gives_the_same_clone_and_another_another():
    again = clone(cloned(), teacher())
    chex.assert_trees_all_equal(again.policy.params, result().policy.params)
    assert again.rows == result().rows
    other = clone(cloned(seed=1), teacher())
    assert other.rows != result().rows


def test_a_clone_leaves_what_a_run_leaves_and_its_masks_are_a_ticket_for_both(tmp_path):
    seen = []

    def look(line):
        rows = files.read_json_lines(tmp_path / "clone" / "metrics.jsonl")
        seen.append((len(rows), json.loads((tmp_path / "clone" / "summary.json").read_text())["finished"]))

    found = clone(cloned(), teacher(), tmp_path / "clone", say=look)
    assert seen == [(1, False), (2, False), (3, False)]
    assert files.read_json_lines(tmp_path / "clone" / "metrics.jsonl") == found.rows
    loaded = policies.load(tmp_path / "clone" / "policy.npz")
    chex.assert_trees_all_equal(loaded.params, found.policy.params)
    assert policies.trained_for(loaded.about) == f"{cloned().total_steps:,} updates"
    assert json.loads((tmp_path / "clone" / "summary.json").read_text())["finished"] is True
    kept = tickets.load(tmp_path / "clone")
    chex.assert_trees_all_equal(kept.initial, found.masks.initial)
    chex.assert_trees_all_equal(kept.final, found.masks.final)
    assert any((a != b).any() for a, b in zip(*(masking.kernels(m["actor"]) for m in kept[:2]), strict=True))
    assert_zero_off_mask(found.policy.params, kept.final["actor"])
    won = dataclasses.replace(cloned(), ticket=str(tmp_path / "clone"), topology="fixed")
    for ticket in (
        clone(won, teacher()).masks,
        (train(won, tmp_path / "run", show_progress=False), tickets.load(tmp_path / "run"))[1],
    ):
        for network in ("actor", "critic"):
            chex.assert_trees_all_equal(ticket.initial[network], kept.final[network])
            chex.assert_trees_all_equal(ticket.final[network], kept.final[network])


@pytest.mark.slow
def test_a_clone_is_made_by_a_worker_as_in_this_process(tmp_path):
    taught, home = tmp_path / "teacher.npz", tmp_path / "clone"
    policies.save(taught, *teacher())
    ends = []
    workers.work([workers.Task("clone", cloned(), home, taught)], 1, StopSignals(), ends.append)
    assert [end.code for end in ends] == [0]
    rows = files.read_json_lines(home / "metrics.jsonl")
    assert [row["updates"] for row in rows] == [300, 600, 900]
    assert [row["links_grown"] for row in rows] == [row["links_grown"] for row in result().rows]
    # Its code is fully optimised, that of tests is not.
    chex.assert_trees_all_close(policies.load(home / "policy.npz").params, result().policy.params, atol=1e-4)


@pytest.mark.slow
def test_a_worker_ends_its_clone_when_asked_to_stop_and_tells_why_it_refused(tmp_path):
    stop, ends = StopSignals(), []
    missing = workers.Task("clone", cloned(), tmp_path / "clone", tmp_path / "none.npz")
    workers.work([missing], 1, stop, ends.append)
    (refused,) = ends
    assert refused.code == workers.REFUSED
    assert "none.npz" in refused.how
    policies.save(tmp_path / "teacher.npz", *teacher())
    stop.received = "SIGTERM"
    workers.work([missing._replace(teacher=tmp_path / "teacher.npz")] * 2, 1, stop, ends.append)
    assert ends == [refused], "none begins"
    stop.received = None

    summary = tmp_path / "long" / "summary.json"

    def ask(names):
        stop.received = "SIGTERM" if summary.exists() else None

    long = workers.Task("long", cloned(total_steps=90_000_000), tmp_path / "long", tmp_path / "teacher.npz")
    workers.work([long], 1, stop, ends.append, ask)
    assert ends[1].code == -signal.SIGTERM
    assert files.read_json(summary, {})["finished"] is False


def test_a_workdir_that_holds_something_is_replaced_only_when_told_so(tmp_path):
    config = cloned(total_steps=300, method="ss")
    clone(config, teacher(), tmp_path)
    with pytest.raises(WorkdirError, match="holds this run already; replace it with --overwrite"):
        clone(config, teacher(), tmp_path)
    (tmp_path / "summary.json").unlink()
    clone(config, teacher(), tmp_path, overwrite=True)
    assert (tmp_path / "summary.json").exists()


def test_what_cannot_be_is_refused_in_one_sentence():
    with pytest.raises(
        ConfigError, match=r"the teacher takes 4 numbers and gives 1, but env=probe/action has observations of 1"
    ):
        clone(cloned(), teacher(observation_size=4))
    with pytest.raises(ConfigError, match=r"method=sparser changes the number of links, which a clone's critics"):
        clone(cloned(method="sparser"), teacher())
    with pytest.raises(CheckpointError, match="no masks at nowhere"):
        clone(cloned(ticket="nowhere"), teacher())
    with pytest.raises(DivergedError, match=r"before update 300: .* smaller --actor_lr\.$"):
        clone(cloned(), teacher(bias=jnp.nan))
