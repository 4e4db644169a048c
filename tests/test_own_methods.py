"""Sparse-training methods of one's own: found by name, looked at before anything compiles, and used everywhere."""

import dataclasses
import functools
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import networks, policies
from rlx2_jax.config import Mechanisms, methods, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import forms, masking, own
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from rlx2_jax.sweeps import plans, product
from rlx2_jax.training import compute, evolution, programs
from tests.conftest import ROOT, assert_sparse, cached, launch, launch_here, links_of, small
from tests.test_run import final_state, flags_of, quiet, without_clocks

SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}
KEY = jax.random.PRNGKey(0)
NAME = "methods_of_a_test"
SHOWN = next(
    code
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)
    if "Mechanisms(" in code
)
"""What the documents show: methods in a dozen lines."""

FURTHER = """
import jax.numpy as jnp

fan = Mechanisms(structure=sparse.fan_in)
pairs = Mechanisms(structure=sparse.n_of_m(2, 4), density=sparse.uniform, where=lambda path, _: "Dense_1" in path)
strict = Mechanisms(structure=sparse.n_of_m(2, 4), density=sparse.uniform)
growing = Mechanisms(start=sparse.uniform(0.95), progress=sparse.cubic(0, 1))
noisy = Mechanisms(grow=sparse.criteria.uniform, n_step=2, dynamic_buffer=True)
nothing = 7
narrow = Mechanisms("tiny")
raising = Mechanisms(drop=lambda weight, gradient, key: weight @ gradient)
flat = Mechanisms(drop=lambda weight, gradient, key: weight.ravel())
nowhere = Mechanisms(initial=lambda weight, gradient, key: None)
halfway = Mechanisms(progress=lambda time: time / 2)
vector = Mechanisms(fraction=lambda time: jnp.ones(2))
"""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A working directory with a module of methods, which this process may import."""
    directory = tmp_path_factory.mktemp("methods")
    (directory / f"{NAME}.py").write_text(SHOWN + FURTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "path", [*sys.path])
        yield directory
    sys.modules.pop(NAME, None)


def mine(name, **changes):
    return small(**({"method": f"{NAME}:{name}", **SPARSE} | changes))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run that is pruned from dense: workdir and result."""
    workdir = tmp_path_factory.mktemp("pruned") / "run"
    return workdir, quiet(mine("pruned"), workdir)


def test_a_name_is_resolved_to_mechanisms_and_ablations_overrule_them():
    c = resolve(mine("moving"))
    assert (c.topology, c.n_step, c.dynamic_buffer) == ("gradient", 1, False)
    assert resolve(c) == c
    c = resolve(mine("noisy"))
    assert (c.n_step, c.n_max, c.dynamic_buffer) == (2, 3, True)
    assert resolve(mine("noisy", topology="fixed", n_step=1)).topology == "fixed"
    assert methods.own("rlx2") is None and methods.find("rlx2") is methods.METHODS["rlx2"]


def test_a_method_is_static_and_its_sparsities_and_times_are_data():
    one, other = (
        programs.make_program(mine("moving", **changes))
        for changes in ({}, {"critic_sparsity": 0.8, "seed": 3, "evolve_interval": 60, "drop_fraction": 0.2})
    )
    assert one.chunk is other.chunk
    assert programs.make_program(mine("fan")).chunk is not one.chunk
    assert programs.make_program(small(**SPARSE)).chunk is not one.chunk


def test_runs_of_a_sweep_share_a_program_if_they_share_a_method():
    runs = product(mine("moving"), methods=["ss", "rlx2", f"{NAME}:moving", f"{NAME}:fan"], sparsities=["0.5", "0.6"])
    plan = plans.lay_out(runs)
    found = [{plan.run(name).config.method for name in batch.runs} for batch in plan.batches]
    assert found == [{"ss", "rlx2"}, {f"{NAME}:moving"}, {f"{NAME}:fan"}]
    assert all(":" not in name.replace(f"{NAME}:", "") for batch in plan.batches for name in batch.runs)


def network_of(config, seed, shape=(6, 16), twins=True):
    """A masked network of one layer with few values, so that many are alike, and a gradient."""
    rng = np.random.default_rng(seed)
    few = lambda *shape: jnp.asarray(np.round(rng.normal(size=shape), 1), jnp.float32)
    net = networks.Net(networks.MLP((shape[1],)), twins=twins)
    leading = (2,) if twins else ()
    params, gradient = (
        {"Dense_0": {"kernel": few(*leading, *shape), "bias": few(*leading, shape[1])}} for _ in range(2)
    )
    method = own.with_links(methods.find(config.method), config, params, [jnp.int32(40)])
    mask = own.initial_masks(method, params, KEY)
    params = masking.apply(params, mask)
    return forms.fresh(params, mask, jax.tree.map(jnp.copy, params), net), gradient, method


def expected_event(weight, mask, gradient, fraction):
    """In plain Python: the least salient go, then the largest gradients come; of those alike the first are higher."""
    saliency, size = np.abs(weight * gradient).ravel(), np.abs(gradient).ravel()
    active = sorted(np.flatnonzero(mask), key=lambda i: (-saliency[i], i))
    kept = active[: len(active) - int(fraction * len(active))]
    others = sorted(set(range(mask.size)) - set(kept), key=lambda i: (-size[i], i))
    new = np.zeros(mask.size, bool)
    new[[*kept, *others[: len(active) - len(kept)]]] = True
    return new.reshape(mask.shape)


@pytest.mark.parametrize("seed", range(3))
def test_an_event_by_a_criterion_of_ones_own_is_that_of_plain_python(seed):
    network, gradient, method = network_of(resolve(mine("moving")), seed)
    new, dropped, grown = network.rewire(method, gradient, KEY, jnp.float32(0.3), jnp.float32(0.5), reset_moments=True)
    assert_sparse(new, [[40, 40]])
    kernel = lambda tree: np.asarray(tree["Dense_0"]["kernel"])
    for twin in range(2):
        w, m, g = (kernel(tree)[twin] for tree in (network.params, network.mask, gradient))
        np.testing.assert_array_equal(kernel(new.mask)[twin], expected_event(w, m, g, np.float32(0.3)))
    assert dropped == grown == (kernel(network.mask) & ~kernel(new.mask)).sum()
    assert np.asarray(new.mask["Dense_0"]["bias"]).all()


def test_mechanisms_without_parts_move_the_links_of_rigl(monkeypatch):
    monkeypatch.setattr(sys.modules[NAME], "plain", Mechanisms(), raising=False)
    network, gradient, method = network_of(resolve(mine("plain")), 5)
    one = network.rewire(method, gradient, KEY, jnp.float32(0.3), jnp.float32(0.5), reset_moments=True)
    other = network.evolve(gradient, KEY, jnp.float32(0.3), jnp.asarray(True), reset_moments=True)
    chex.assert_trees_all_equal(one, other)
    six = masking.initial_masks(KEY, network.params, [jnp.int32(40)], None, random=False)
    chex.assert_trees_all_equal(network.mask, six)


@pytest.mark.parametrize("name", ["moving", pytest.param("fan", marks=pytest.mark.slow)])
def test_an_event_is_the_same_masked_and_packed(name):
    program = programs.make_program(mine(name))
    other = programs.make_program(mine(name, compute="packed"))
    state = jax.jit(program.init)(KEY, program.hparams)
    replay = state.replay.replace(
        observation=jax.random.normal(KEY, state.replay.observation.shape),
        reward=jax.random.normal(KEY, state.replay.reward.shape),
        head=jnp.asarray(state.replay.reward.shape[0], jnp.int32),
    )
    now = dataclasses.replace(state.progress, critic_calls=jnp.int32(150))
    found = []
    for p, agent in ((program, state.agent), (other, other.pack(state).agent)):
        moment = evolution.Moment(now, now, p.hparams, p.schedule, jnp.asarray(False))
        event = jax.jit(functools.partial(evolution.evolve, p.trainer, "critic"))
        new, told, _ = event(agent=agent, replay=replay, moment=moment, key=KEY)
        assert told.dropped == told.grown > 0
        found.append(programs.agent_masks(new)["critic"])
    chex.assert_trees_all_equal(*found)


def test_structures_have_the_links_that_they_can_hold():
    config = resolve(mine("fan"))
    program = programs.make_program(config)
    agent = jax.jit(program.init)(KEY, program.hparams).agent
    for name, found in structure(config, program.env.observation_size, program.env.action_size).items():
        network = getattr(agent, name)
        assert_sparse(network, found.links)
        assert all(links % side == 0 for links, (_, side) in zip(found.links, found.shapes, strict=True))
        fan_in = np.asarray(network.mask["Dense_1"]["kernel"]).sum(-2)
        assert (fan_in == fan_in.flat[0]).all()


def test_a_leaf_that_a_method_leaves_out_is_dense():
    config = resolve(mine("pairs", actor_sparsity=0.5))
    program = programs.make_program(config)
    actor = jax.jit(program.init)(KEY, program.hparams).agent.actor
    assert [int(n) for n in links_of(actor.mask)] == [16, 128, 16]
    by_four = np.asarray(actor.mask["Dense_1"]["kernel"]).T.reshape(-1, 4).sum(1)
    np.testing.assert_array_equal(by_four, 2)


def test_numbers_of_links_change_one_way_and_end_exactly_where_they_were_asked_to(pruned):
    workdir, result = pruned
    config = resolve(mine("pruned"))
    sizes = result.policy.sizes
    ends = structure(config, *sizes)
    for name in ("actor", "critic"):
        found = [row[f"{name}_sparsity"] for row in result.rows]
        assert 0 < found[0] < found[1] < found[2] and found == sorted(found)
        dense = [i * o for i, o in ends[name].shapes]
        assert ends[name].first_links == tuple(dense)
        assert found[-1] == pytest.approx(1 - sum(ends[name].links) / sum(dense), abs=1e-6)
    assert {row["links_grown"] for row in result.rows} == {0}
    assert sum(row["links_dropped"] for row in result.rows) == sum(
        (1 + (name == "critic")) * (sum(e.first_links) - sum(e.links)) for name, e in ends.items()
    )
    assert_sparse(final_state(workdir, config)[1].agent.critic, [[n, n] for n in ends["critic"].links])
    masks = tickets.load(workdir)
    assert [int(n) for n in links_of(masks.final["actor"])] == [*ends["actor"].links]
    assert [int(n) for n in links_of(masks.initial["actor"])] == [*ends["actor"].first_links]


def test_a_ticket_is_what_it_was_found_with(pruned):
    workdir, _ = pruned
    found = programs.make_program(mine("moving", ticket=str(workdir)))
    actor = jax.jit(found.init)(KEY, found.hparams).agent.actor
    chex.assert_trees_all_equal(actor.mask, tickets.load(workdir).final["actor"])
    with pytest.raises(ConfigError, match="has other numbers of links than this run's actor"):
        programs.make_program(mine("pruned", ticket=str(workdir)))


def test_a_run_that_is_pruned_resumes_bit_for_bit(pruned, tmp_path):
    workdir, whole = pruned
    stop = lambda rows: (_ for _ in ()).throw(KeyboardInterrupt) if len(rows) == 2 else None
    with pytest.raises(KeyboardInterrupt):
        quiet(mine("pruned"), tmp_path, on_report=stop)
    resumed = quiet(mine("pruned"), tmp_path, resume=True)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows)
    states = (final_state(place, mine("pruned"))[1] for place in (tmp_path, workdir))
    chex.assert_trees_all_equal(*states)


def test_what_changes_numbers_of_links_is_masked(capsys):
    said = []
    config = resolve(mine("pruned", compute="auto"))
    assert compute.choose(config, said.append).compute == "masked"
    assert said == [
        f"compute: masked, because {NAME}:pruned changes the number of links, which is a shape in packed compute"
    ]


BAD = {
    "no module": ({"method": "no_such_module:x"}, r"no_such_module:x cannot be imported: ModuleNotFoundError \("),
    "no name": ({"method": f"{NAME}:missing"}, rf"{NAME}:missing cannot be imported: AttributeError \("),
    "no method": ({"method": f"{NAME}:nothing"}, rf"method={NAME}:nothing is of type int; name an object of "),
    "a kind": ({"method": f"{NAME}:narrow"}, rf"method={NAME}:narrow has kind='tiny' .*; use kind='sparse'"),
    "raises": ({"method": f"{NAME}:raising"}, rf"method={NAME}:raising: its drop raised TypeError \(.*\); mend it"),
    "shape": (
        {"method": f"{NAME}:flat"},
        r".*: its drop gives an array of shape \[16\]; give an array of shape \[1, 16\]\.",
    ),
    "no array": ({"method": f"{NAME}:nowhere"}, r".*: its initial gives a NoneType; give an array of shape"),
    "progress": (
        {"method": f"{NAME}:halfway"},
        r".*: its progress is 0 at time 0 and 0\.5 at time 1; let it begin in \[0, 1\] and end at 1\.",
    ),
    "fraction": ({"method": f"{NAME}:vector"}, r".*: its fraction gives an array of shape \[2\]; give .* \[\]\."),
    "structure": (
        {"method": f"{NAME}:strict"},
        rf"actor_sparsity=0\.6 with method={NAME}:strict: Dense_0/kernel has 1 inputs, no multiple of 4: leave it out",
    ),
    "sparsity": (
        {"method": f"{NAME}:pairs"},
        r"actor_sparsity=0\.6 with .*: Dense_1/kernel: 2 of 4 is a sparsity of 0\.5, 128 connections; ask for it\.",
    ),
    "packed": (
        {"method": f"{NAME}:pruned", "compute": "packed"},
        r".* changes the number of links, which is a shape in packed compute; use compute=masked\.",
    ),
    "fixed": ({"method": f"{NAME}:pruned", "topology": "fixed"}, r".*which topology=fixed does not let it; leave that"),
    "no time": ({"method": f"{NAME}:pruned", "evolve_until": 0.0}, r".*evolve_until=0 leaves no update to do it in"),
    "grows": ({"method": f"{NAME}:noisy", "topology": "random"}, r".* says itself what grows; leave out topology=rand"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(case):
    changes, message = BAD[case]
    with pytest.raises(ConfigError, match=rf"^{message}") as refused:
        programs.make_program(mine("moving", **changes))
    assert "\n" not in str(refused.value)


def test_a_launcher_refuses_with_exit_code_2(tmp_path):
    done = launch_here("train.py", *flags_of(mine("raising")), f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its drop raised TypeError" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_method_is_trained_resumed_evaluated_and_swept_from_the_command_line(place, tmp_path):
    """By launchers that have never heard of it, in processes and in one program."""
    flags = [*flags_of(mine("moving")), cached()]
    run = tmp_path / "run"
    whole = launch("train.py", *flags, f"--workdir={run}", cwd=place)
    assert whole.returncode == 0, whole.stderr
    assert f"{NAME}:moving td3 on probe/action, sparsity 60 %" in whole.stderr
    again = launch_here("train.py", "--resume", f"--workdir={run}", cached())
    assert again.returncode == 0, again.stderr
    scored = launch_here("evaluate.py", f"--workdir={run}", "--episodes=4", "--json", cached())
    assert scored.returncode == 0, scored.stderr
    swept = [flag for flag in flags if not flag.startswith(("--seed", "--method"))]
    asked = ["--seeds=1", f"--methods={NAME}:moving,{NAME}:pruned"]
    done = launch_here("sweep.py", *swept, *asked, f"--workdir={tmp_path / 'one'}", "--parallel=processes")
    assert done.returncode == 0, done.stderr
    done = launch_here("sweep.py", *swept, *asked, f"--workdir={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr
    ours = policies.load(run).params
    found = {way: sorted((tmp_path / way).glob("runs/*moving*")) for way in ("one", "other")}
    chex.assert_trees_all_equal(policies.load(*found["one"]).params, ours)
    alone, together = tickets.load(run), tickets.load(*found["other"])
    chex.assert_trees_all_equal(together.final, alone.final)
