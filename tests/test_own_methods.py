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

from rlx2_jax import networks, policies, sparse
from rlx2_jax.analysis.accounting import account
from rlx2_jax.config import Mechanisms, methods, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import forms, masking, own
from rlx2_jax.networks.structure import structure, templates
from rlx2_jax.policies import tickets
from rlx2_jax.runtime import memory
from rlx2_jax.sparse import events
from rlx2_jax.sweeps import plans, product
from rlx2_jax.training import compute, evolution, programs
from tests.conftest import ROOT, assert_sparse, cached, launch, launch_here, links_of, small
from tests.test_packed import chunk_of
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
sparser = Mechanisms(start=sparse.uniform(0.3), progress=sparse.cubic(0, 0.8), fraction=sparse.constant(0.5))
swinging = Mechanisms(structure=sparse.fan_in, progress=lambda t: 0.2 + 0.8 * t + 40 * t * (t - 0.6) * (t - 1))
noisy = Mechanisms(grow=sparse.criteria.uniform, n_step=2, dynamic_buffer=True)
nothing = 7
narrow = Mechanisms("tiny")
raising = Mechanisms(drop=lambda weight, gradient, key: weight @ gradient)
flat = Mechanisms(drop=lambda weight, gradient, key: weight.ravel())
nowhere = Mechanisms(initial=lambda weight, gradient, key: None)
late = Mechanisms(progress=lambda time: jnp.where(time < 1, 0.0, 1.0))
halfway = Mechanisms(progress=lambda time: time / 2)
unmoved = Mechanisms(start=sparse.uniform(0.5))
doubled = Mechanisms(start_times=2)
numbered = Mechanisms(fraction=0.3)
dense_already = Mechanisms(density=0.5)
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


@pytest.fixture(scope="module")
def sparser(tmp_path_factory):
    """A packed run that is pruned from a sparse start: workdir and result."""
    workdir = tmp_path_factory.mktemp("sparser") / "run"
    return workdir, quiet(mine("sparser", compute="packed"), workdir)


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
    assert not set(":/") & set("".join(run.name for run in plan.runs))


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


def test_the_last_event_is_at_the_end_however_the_warm_up_is_divided(tmp_path):
    config = resolve(mine("late", warmup_steps=201))
    result = quiet(config, tmp_path)
    actor = structure(config, *result.policy.sizes)["actor"]
    density = sum(actor.links) / sum(i * o for i, o in actor.shapes)
    assert result.rows[-1]["actor_sparsity"] == pytest.approx(1 - density, abs=1e-6)
    assert result.rows[-2]["actor_sparsity"] == 0


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


def stages(config, name):
    """Links of each matrix that a network has when it was updated so often, by plain arithmetic."""
    found = structure(config, 1, 1)[name]
    updates = (1000 if name == "critic" else 500) * config.evolve_until

    def at(calls):
        left = max(0.0, 1 - min(calls // config.evolve_interval * config.evolve_interval / updates, 1) / 0.8) ** 3
        return [end + round((start - end) * left) for start, end in zip(found.start_links, found.links, strict=True)]

    return at


@pytest.mark.slow
def test_packed_and_masked_go_through_the_same_stages():
    """From a sparse start, one matrix growing and others pruned: as many links as planned, the same at first, and what
    is learned the same to rounding."""
    config = resolve(mine("sparser"))
    packed = dataclasses.replace(config, compute="packed")
    program = programs.make_program(packed)
    state = jax.jit(program.init)(KEY, program.hparams)
    chunk, renew = jax.jit(program.chunk), jax.jit(program.renew)
    for number in range(5):
        state = chunk(renew(state), program.hparams, program.schedule)
        if number == 1:  # After a chunk of learning.
            masked, ours = chunk_of(config, chunks=2), programs.unpack(state)
        for name in ("actor", "critic"):
            network, calls = getattr(state.agent, name), int(getattr(state.progress, f"{name}_calls"))
            planned = stages(config, name)(calls)
            live = [links.row_start[..., -1].ravel().tolist() for links in network.links]
            assert [*map(set, live)] == [{count} for count in planned]
            assert_sparse(network.masked(), planned)
            for vector in (network.params, network.target, network.adam.mu, network.adam.nu):
                if vector is not None:
                    np.testing.assert_array_equal(
                        forms.pack(forms.unpack(vector, network.links), network.links), vector
                    )
    for name in ("actor", "critic"):
        one, other = getattr(masked.agent, name), getattr(ours.agent, name)
        chex.assert_trees_all_equal(one.mask, other.mask)
        chex.assert_trees_all_close((one.params, one.target), (other.params, other.target), rtol=2e-3, atol=2e-4)
    assert masked.tally.links_dropped > 0 and masked.tally.links_grown > 0


def test_a_packed_run_that_is_pruned_resumes_bit_for_bit(sparser, tmp_path):
    workdir, whole = sparser
    config = mine("sparser", compute="packed")
    _stopped(config, tmp_path)
    resumed = quiet(config, tmp_path, resume=True)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows)
    chex.assert_trees_all_equal(*(final_state(place, config)[1] for place in (tmp_path, workdir)))


@pytest.mark.slow
def test_a_packed_run_that_is_pruned_resumes_masked(sparser, tmp_path):
    _, whole = sparser
    _stopped(mine("sparser", compute="packed"), tmp_path)
    masked = quiet(mine("sparser"), tmp_path, resume=True)
    links = lambda rows: [[row[name] for name in ("env_steps", "actor_sparsity", "critic_sparsity")] for row in rows]
    assert masked.finished and links(masked.rows) == links(whole.rows)


def _stopped(config, workdir):
    """A run that is interrupted after its first evaluation with learning."""
    stop = lambda rows: (_ for _ in ()).throw(KeyboardInterrupt) if len(rows) == 2 else None
    with pytest.raises(KeyboardInterrupt):
        quiet(config, workdir, on_report=stop)


@pytest.mark.parametrize("name", ["moving", "pruned", "growing", "sparser", "swinging"])
def test_there_is_room_for_the_links_of_every_stage(name):
    config = resolve(mine(name, compute="packed"))
    mechanisms = methods.find(config.method)
    for network, found in structure(config, 1, 1).items():
        params = templates(config, 1, 1)[network]
        method = own.with_links(mechanisms, config, params, found.links)
        leaves = [leaf for leaf in events.sparse_leaves(method, params) if leaf is not None]
        counts = [[*events.connections_at(method, leaves, time).values()] for time in np.linspace(0, 1, 21)]
        assert tuple(counts[0]) == found.first_links and tuple(counts[-1]) == found.links
        assert (np.max(counts, 0) <= found.capacities).all()
        if name != "swinging":  # It begins on its way, and overshoots.
            assert (np.max(counts, 0) == found.capacities).all()
    program = programs.make_program(config)
    agent = jax.eval_shape(program.init, KEY, program.hparams).agent
    assert account(config, 1, 1).bytes_packed == memory.tree_bytes(agent)


def test_auto_decides_by_the_density_of_a_run_on_average(tmp_path, monkeypatch):
    config = resolve(mine("sparser", compute="auto"))
    links = weights = 0
    for name, calls in (("actor", 500), ("critic", 1000)):
        at = stages(config, name)
        links += np.mean([sum(at(k)) for k in range(calls)])
        weights += sum(i * o for i, o in structure(config, 1, 1)[name].shapes)
    monkeypatch.setattr(compute, "measure_break_even", lambda seconds: even)
    for factor, which in ((0.99, "masked"), (1.01, "packed")):
        said, even = [], factor * links / weights
        assert compute.choose(config, said.append, tmp_path / f"{which}.json").compute == which
        share = f"{100 * links / weights:.2g} % of the weights are links on average over the run"
        assert said == [f"compute: {which}, because {share} and packed is faster below {100 * even:.2g} % here"]


def test_a_dense_run_is_masked_even_where_packed_was_measured_faster_at_any_density(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "measure_break_even", lambda seconds: 1.33)
    said = []
    dense = resolve(small(method="dense", compute="auto"))
    assert compute.choose(dense, said.append, tmp_path / "compute.json").compute == "masked"
    assert said == ["compute: masked, because 100 % of the weights are links and packed is faster below 100 % here"]


@pytest.mark.parametrize("scalar", [float, np.float32, jnp.float32])
def test_a_multiple_of_a_density_is_at_most_all_whatever_its_type(scalar):
    mechanisms = Mechanisms("sparse", start_times=2, progress=sparse.cubic(0, 1))
    config = resolve(small(**SPARSE))
    for density, connections in ((0.75, 64), (0.25, 32)):
        made = own.method(mechanisms, config, sparse.uniform(1 - scalar(density)))
        masks = own.initial_masks(made, {"a": {"kernel": jnp.zeros((8, 8))}}, jax.random.PRNGKey(0))
        assert masks["a"]["kernel"].sum() == connections


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
    "a start of what never changes": ({"method": f"{NAME}:unmoved"}, ".* which never change; say how by progress"),
    "a multiple of what never changes": ({"method": f"{NAME}:doubled"}, ".* which never change; say how by progress"),
    "a number for a share": ({"method": f"{NAME}:numbered"}, r".*: its fraction is 0\.3; give .* sparse\.constant"),
    "a number for a density": ({"method": f"{NAME}:dense_already"}, r".*: its density is 0\.5; give a function"),
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
