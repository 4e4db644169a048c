"""Masks as files, and runs that begin with the masks another one ended with."""

import dataclasses
import json
import os
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax import policies
from rlx2_jax.config import Config, resolve
from rlx2_jax.config.presets import make_config
from rlx2_jax.errors import CheckpointError, ConfigError, WorkdirError
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from rlx2_jax.sweeps import plans, product, sweep
from rlx2_jax.training import programs, train
from rlx2_jax.training.record import Record
from tests.conftest import PAPER_AGENTS, assert_zero_off_mask, cached, launch_here, small

FIXED = {"method": "rlx2", "topology": "fixed"}


def quiet(config, workdir=None, **options):
    return train(config, workdir, show_progress=False, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def start(config):
    """The first state of a run, unpacked, on the host."""
    program = programs.make_program(config)
    state = jax.jit(program.init)(jax.random.PRNGKey(program.config.seed), program.hparams)
    return jax.device_get(jax.jit(programs.unpack)(state))


def networks_of(state):
    return {"actor": state.agent.actor, "critic": state.agent.critic}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Directories of two runs whose links moved, one by agent."""
    directories = {agent: tmp_path_factory.mktemp("found") / agent for agent in PAPER_AGENTS}
    for agent, directory in directories.items():
        quiet(small(agent=agent, actor_sparsity=0.6, critic_sparsity=0.5), directory)
    return directories


def from_ticket(found, agent="td3", **changes):
    sparsities = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}
    return small(**({"agent": agent, "ticket": str(found[agent]), **sparsities, **FIXED} | changes))


@st.composite
def settings_and_sizes(draw):
    """A configuration, and the sizes of a task."""
    settings = {
        "agent": draw(st.sampled_from(PAPER_AGENTS)),
        "method": draw(st.sampled_from(["dense", "rlx2", "tiny"])),
        "hidden": tuple(draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))),
    }
    sparse = {f"{name}_sparsity": draw(st.sampled_from([0.1, 0.5])) for name in ("actor", "critic")}
    return resolve(small(**settings, **sparse)), draw(st.integers(1, 5)), draw(st.integers(1, 3))


def masks_of(config, observation_size, action_size, rng):
    """Random masks with as many links as a configuration makes."""
    trees = {}
    for name, own in structure(config, observation_size, action_size).items():
        trees[name] = {}
        lead = (2,) if name == "critic" else ()
        for i, ((rows, columns), count) in enumerate(zip(own.shapes, own.links, strict=True)):
            flat = np.tile(np.arange(rows * columns) < count, (*lead, 1))
            kernel = rng.permuted(flat, axis=-1).reshape(*lead, rows, columns)
            trees[name][f"Dense_{i}"] = {"kernel": kernel, "bias": np.ones((*lead, columns), bool)}
    return trees


@given(settings_and_sizes(), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, what, seed):
    rng = np.random.default_rng(seed)
    initial, final, third = (masks_of(*what, rng) for _ in range(3))
    about = policies.describe(what[0], 1200, None)
    path = tmp_path_factory.mktemp("masks") / "file.npz"
    tickets.save(path, jax.tree.map(jnp.asarray, initial), final, about | {"seed": seed})
    loaded = tickets.load(path)
    chex.assert_trees_all_equal(loaded.initial, initial)
    chex.assert_trees_all_equal(loaded.final, final)
    assert loaded.about["seed"] == seed
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves((loaded.initial, loaded.final)))
    path.rename(path.with_name("moved.npz"))
    found = {tickets.digest(path.with_name("moved.npz"))}
    tickets.save(path, initial, final, about)
    assert {tickets.digest(path)} == found, "what it holds, not where or whence"
    others = [(final, initial), (initial, third)]
    for other in others:
        tickets.save(path, *other, about)
        found.add(tickets.digest(path))
    distinct = {str([np.packbits(leaf) for leaf in jax.tree.leaves(pair)]) for pair in ((initial, final), *others)}
    assert len(found) == len(distinct)


def with_a_link_less(trees, network):
    less = jax.tree.map(np.copy, trees)
    kernel = less[network]["Dense_1"]["kernel"]
    kernel = kernel[1] if network == "critic" else kernel
    kernel.flat[np.flatnonzero(kernel)[0]] = False
    return less


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("moment", ["initial", "final"])
def test_masks_with_other_numbers_of_links_than_their_own_configuration_are_damaged(found, tmp_path, network, moment):
    ticket = tickets.load(found["td3"])
    ticket = ticket._replace(**{moment: with_a_link_less(getattr(ticket, moment), network)})
    tickets.save(tmp_path / "file.npz", *ticket)
    with pytest.raises(CheckpointError, match=rf"damaged \({network} matrix 1 has .*make their run again\.$"):
        tickets.load(tmp_path / "file.npz")


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("agent", "env", "config", "env_steps")),
        {"shapes": {}},
        {"shapes": {"actor": [], "critic": []}},
        {"shapes": {"actor": [[2**40, 16], [16, 16], [16, 1]], "critic": []}},
        {"shapes": [1]},
        {"format": "1"},
        {"config": {"hidden": [16, 2**40]}},
    ],
)
def test_masks_whose_description_is_wrong_are_refused_in_one_sentence(found, tmp_path, changes):
    ticket = tickets.load(found["td3"])
    with np.load(found["td3"] / tickets.NAME) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "file.npz", **(arrays | {"about": json.dumps(ticket.about | changes)}))
    with pytest.raises(CheckpointError, match=r"^the masks .*\.$") as refused:
        tickets.load(tmp_path / "file.npz")
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_never_read_as_other_masks(found, tmp_path):
    whole = (found["td3"] / tickets.NAME).read_bytes()
    good = tickets.load(found["td3"])
    path = tmp_path / "damaged.npz"
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        try:
            # Names and times in an archive are not all under its checksums.
            assert same(tickets.load(path)[:2], good[:2])
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 7 / 2
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"damaged .*make their run again\.$"):
            tickets.load(path)


def test_a_file_of_another_kind_or_format_is_refused(found, tmp_path):
    with pytest.raises(CheckpointError, match="damaged"):
        tickets.load(found["td3"] / "policy.npz")
    with np.load(found["td3"] / tickets.NAME) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays.pop("about"))) | {"format": 2}
    np.savez(tmp_path / "later.npz", about=json.dumps(about), **arrays)
    with pytest.raises(CheckpointError, match=r"of format 2, not 1; make their run again"):
        tickets.load(tmp_path / "later.npz")


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"compute": "packed"}, marks=pytest.mark.slow), {"method": "dense"}, {"method": "tiny"}],
)
def test_a_finished_run_leaves_the_masks_it_began_and_ended_with(tmp_path, changes):
    config = small(actor_sparsity=0.6, critic_sparsity=0.5, **changes)
    result = quiet(config, tmp_path)
    kept = tickets.load(tmp_path)
    chex.assert_trees_all_equal(kept.initial, {name: n.mask for name, n in networks_of(start(config)).items()})
    assert_zero_off_mask(jax.device_get(result.policy.params), kept.final["actor"])
    assert same(kept.initial, kept.final) == (changes.get("method") in ("dense", "tiny"))
    if changes.get("method") == "dense":
        assert all(leaf.all() for leaf in jax.tree.leaves(kept.final))
    assert kept.about["config"] == json.loads(json.dumps(resolve(config).to_dict()))
    assert kept.about["env_steps"] == 1200
    assert (tmp_path / tickets.NAME).stat().st_size < 5000


def test_a_run_that_is_stopped_leaves_masks_only_at_its_end(tmp_path):
    config = small(actor_sparsity=0.6, critic_sparsity=0.5)
    quiet(config, tmp_path / "run", on_report=lambda rows: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(CheckpointError, match="name the directory of a finished run"):
        tickets.load(tmp_path / "run")
    quiet(config, tmp_path / "run", resume=True)
    quiet(config, tmp_path / "whole")
    assert tickets.digest(tmp_path / "run") == tickets.digest(tmp_path / "whole")


@pytest.mark.parametrize("compute", ["masked", "packed"])
@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_a_ticket_begins_with_the_masks_found_and_the_initial_values_of_the_dense_network(found, agent, compute):
    ticket = tickets.load(found[agent])
    dense = networks_of(start(small(agent=agent, method="dense")))
    for name, network in networks_of(start(from_ticket(found, agent, compute=compute))).items():
        chex.assert_trees_all_equal(network.mask, ticket.final[name])
        # Another program rounds its last operation differently.
        expected = masking.apply(dense[name].params, ticket.final[name])
        chex.assert_trees_all_close(network.params, expected, atol=1e-7, rtol=0)
        assert_zero_off_mask(network.params, ticket.final[name])
        for tree in (network.target, network.adam.mu, network.adam.nu):
            if tree is not None:
                assert_zero_off_mask(tree, network.mask)
        grown = [f & ~i for f, i in zip(*map(masking.kernels, (ticket.final[name], ticket.initial[name])), strict=True)]
        assert any(g.any() for g in grown), "else there were nothing to see"
        assert all(k[g].all() for k, g in zip(masking.kernels(network.params), grown, strict=True))


@pytest.mark.parametrize("compute", ["masked", "packed"])
@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_the_releases_ticket_is_zero_exactly_where_the_first_mask_had_no_link(found, agent, compute):
    ticket = tickets.load(found[agent])
    initial = networks_of(start(from_ticket(found, agent, compute=compute)))
    released = networks_of(start(from_ticket(found, agent, compute=compute, ticket_weights="release")))
    for name, network in released.items():
        chex.assert_trees_all_equal(network.mask, ticket.final[name])
        for kernel, whole, first, last in zip(
            *map(masking.kernels, (network.params, initial[name].params, ticket.initial[name], ticket.final[name])),
            strict=True,
        ):
            np.testing.assert_array_equal(kernel != 0, first & last)
            np.testing.assert_allclose(kernel, np.where(first, whole, 0), atol=1e-7, rtol=0)
        if network.target is not None:
            chex.assert_trees_all_equal(network.target, network.params)


def test_the_release_preset_has_its_tickets_weights_and_the_first_targets_of_a_dense_network(found):
    config = make_config(("release",), {k: v for k, v in vars(from_ticket(found)).items() if v != vars(Config())[k]})
    dense = networks_of(start(small(method="dense")))
    for name, network in networks_of(start(config)).items():
        chex.assert_trees_all_close(network.target, dense[name].params, atol=1e-7, rtol=0)
        assert any(
            (k == 0)[m].any() for k, m in zip(*map(masking.kernels, (network.params, network.mask)), strict=True)
        )


@pytest.mark.parametrize("compute", ["masked", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_fixed_ticket_keeps_its_masks_to_the_end_and_learns(found, tmp_path, compute):
    config = from_ticket(found, compute=compute)
    result = quiet(config, tmp_path)
    kept, ticket = tickets.load(tmp_path), tickets.load(found["td3"])
    for network in ("actor", "critic"):
        chex.assert_trees_all_equal(kept.initial[network], ticket.final[network])
        chex.assert_trees_all_equal(kept.final[network], ticket.final[network])
    assert not same(result.policy.params, start(config).agent.actor.params)


def test_any_topology_may_begin_with_a_ticket(found, tmp_path):
    quiet(from_ticket(found, topology="random", seed=3), tmp_path)
    kept, ticket = tickets.load(tmp_path), tickets.load(found["td3"])
    assert same(kept.initial, ticket.final)
    assert not same(kept.final, ticket.final)


def test_a_tiny_run_begins_with_a_tiny_ticket_alone(found, tmp_path):
    tiny = small(method="tiny", actor_sparsity=0.6, critic_sparsity=0.5)
    quiet(tiny, tmp_path)
    again = start(dataclasses.replace(tiny, ticket=str(tmp_path)))
    chex.assert_trees_all_equal(again.agent.actor.params, start(tiny).agent.actor.params)
    with pytest.raises(ConfigError, match="other numbers of links"):
        programs.make_program(dataclasses.replace(tiny, ticket=str(found["td3"])))


BAD = {
    "missing": ({"ticket": "nowhere"}, "no masks at nowhere; name the directory of a finished run"),
    "agent": ({"agent": "sac"}, "holds masks of agent=td3, not sac"),
    "hidden": ({"hidden": (16, 8)}, "has actor matrices 1x16, 16x16, 16x1, this run 1x16, 16x8, 8x1"),
    "depth": ({"hidden": (16,)}, "this run 1x16, 16x1"),
    "env": ({"env": "inverted_pendulum"}, "this run 4x16, 16x16, 16x1"),
    "actor sparsity": ({"actor_sparsity": 0.9}, r"other numbers of links .*\(actor_sparsity=0\.6\)"),
    "critic sparsity": ({"critic_sparsity": 0.6}, r"other numbers of links .*\(critic_sparsity=0\.5\)"),
    "dense": ({"method": "dense", "topology": None}, "other numbers of links than this run's actor; use the method's"),
    "weights": ({"ticket_weights": "fresh"}, "unknown ticket_weights 'fresh'; valid: initial, release"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_ticket_that_does_not_fit_is_refused_in_one_sentence_before_anything_compiles(found, changes, message):
    config = from_ticket(found, **({"ticket": str(found["td3"])} | changes))
    with pytest.raises((ConfigError, CheckpointError), match=message) as refused:
        programs.make_program(config)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_ticket_run_resumes_exactly_also_when_the_ticket_was_moved_but_not_with_another(found, tmp_path):
    config = from_ticket(found, checkpoint_every=200, seed=4)
    shutil.copytree(found["td3"], tmp_path / "moved")
    shutil.copytree(found["td3"], tmp_path / "other")
    ticket = tickets.load(found["td3"])
    tickets.save(tmp_path / "other" / tickets.NAME, ticket.final, ticket.initial, ticket.about)
    quiet(config, tmp_path / "run", on_report=lambda rows: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(CheckpointError, match=r"another run \(other ticket\)"):
        quiet(dataclasses.replace(config, ticket=str(tmp_path / "other")), tmp_path / "run", resume=True)
    resumed = quiet(dataclasses.replace(config, ticket=str(tmp_path / "moved")), tmp_path / "run", resume=True)
    whole = quiet(config, tmp_path / "whole")
    chex.assert_trees_all_equal(resumed.policy.params, whole.policy.params)
    assert tickets.digest(tmp_path / "run") == tickets.digest(tmp_path / "whole")
    with pytest.raises(WorkdirError, match="ticket_weights"):
        quiet(dataclasses.replace(config, ticket_weights="release"), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_sweep_leaves_the_masks_of_every_run_also_when_it_was_stopped(tmp_path, monkeypatch):
    configs = product(small(actor_sparsity=0.6, critic_sparsity=0.5), methods=["dense", "rlx2", "set"])
    with monkeypatch.context() as patch:
        add = Record.add
        patch.setattr(Record, "add", lambda *args: (add(*args), os.kill(os.getpid(), signal.SIGTERM)))
        stopped = sweep(configs, tmp_path / "sweep", show_progress=False)
    assert not stopped.finished
    assert not list((tmp_path / "sweep").glob(f"runs/*/{tickets.NAME}"))
    assert sweep(configs, tmp_path / "sweep", show_progress=False).finished
    for run in stopped.plan.runs:
        quiet(run.config, tmp_path / run.name)
        together = tmp_path / "sweep" / "runs" / run.name
        chex.assert_trees_all_equal(tickets.load(together)[:2], tickets.load(tmp_path / run.name)[:2])
        assert_zero_off_mask(policies.load(together / "policy.npz").params, tickets.load(together).final["actor"])


def test_configurations_share_a_program_exactly_when_they_share_a_ticket(found, tmp_path):
    shutil.copytree(found["td3"], tmp_path / "copy")
    paths = [str(found["td3"]), str(tmp_path / "copy")]
    one = product(from_ticket(found), seeds=[0, 1])
    assert plans.lay_out(one).compilations == 1
    both = product(from_ticket(found), seeds=[0, 1], fields={"ticket": paths})
    plan = plans.lay_out(both, fields=["ticket"])
    assert plan.compilations == 2
    assert not any("/" in run.name for run in plan.runs)
    with pytest.raises(ConfigError, match="other numbers of links"):
        plans.lay_out(product(from_ticket(found), sparsities=["0.6/0.5", "0.7/0.5"]))


@pytest.mark.slow
def test_runs_of_a_sweep_keep_the_ticket_that_they_share(found, tmp_path):
    result = sweep(product(from_ticket(found), seeds=[0, 1]), tmp_path, show_progress=False)
    for run in result.plan.runs:
        assert same(tickets.load(tmp_path / "runs" / run.name).final, tickets.load(found["td3"]).final)


@pytest.mark.slow
def test_a_ticket_is_found_and_trained_from_the_command_line(tmp_path):
    run = ("--env=probe/action", "--hidden=16,16", "--batch_size=16", "--num_envs=4", "--total_steps=800", cached())
    run = (*run, "--episode_length=10", "--actor_sparsity=0.6", "--critic_sparsity=0.5", "--compute=masked")
    first = launch_here("train.py", *run, "--workdir=found", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = launch_here("train.py", *run, "--ticket=found", "--topology=fixed", "--workdir=won", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert same(tickets.load(tmp_path / "won").initial, tickets.load(tmp_path / "found").final)
    assert same(*tickets.load(tmp_path / "won")[:2])
    missing = launch_here("train.py", *run, "--ticket=nowhere", "--workdir=lost", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == "error: no masks at nowhere; name the directory of a finished run, or its masks.npz.\n"
    assert not (tmp_path / "lost").exists()


def test_a_ticket_gives_the_counts_of_links_that_packed_compute_needs(found):
    program = programs.make_program(from_ticket(found, compute="packed"))
    state = jax.jit(program.init)(jax.random.PRNGKey(0), program.hparams)
    assert [links.capacity for links in state.agent.actor.links] == [*map(int, program.hparams.actor_links)]
