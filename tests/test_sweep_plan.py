"""Plans: which runs there are, which of them make one program, and what a workdir's earlier plan allows."""

import dataclasses
import itertools
import math
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax.config import METHODS, Config, make_schedule, resolve
from rlx2_jax.errors import ConfigError, RlxError, WorkdirError
from rlx2_jax.networks import MLP
from rlx2_jax.sweeps import plans
from rlx2_jax.sweeps.plans import SHARED, build, lay_out, product
from tests.conftest import small

SWEPT = {"gamma": [0.9, 0.95], "actor_lr": [1e-3]}


def test_a_sweep_is_the_product_of_its_axes():
    configs = product(
        small(),
        agents=["td3", "sac"],
        methods=["set", "rlx2"],
        sparsities=["0.5", "0.6/0.7"],
        seeds=[3, 7],
        fields=SWEPT,
    )
    assert len(configs) == 2 * 2 * 2 * 2 * 2
    assert {(c.actor_sparsity, c.critic_sparsity) for c in configs} == {(0.5, 0.5), (0.6, 0.7)}
    assert {c.seed for c in configs} == {3, 7}
    assert all(c == resolve(c) for c in configs)
    assert product(small()) == [resolve(small())]


def test_a_dense_run_is_one_run_at_every_sparsity():
    configs = product(small(), methods=["dense", "ss"], sparsities=["0.5", "0.6"])
    assert [c.method for c in configs] == ["dense", "ss", "ss"]


def test_preset_sparsities_are_the_rows_of_table_2():
    configs = product(Config(), envs=["hopper", "ant"], agents=["td3", "sac"], sparsities=["preset"])
    found = {(c.agent, c.env): (c.actor_sparsity, c.critic_sparsity) for c in configs}
    assert found["td3", "hopper"] == (0.98, 0.95)
    assert found["sac", "ant"] == (0.9, 0.75)
    assert {c.total_steps for c in configs} == {1_000_000}, "the sparsities alone"
    with pytest.raises(ConfigError, match=r"no row td3/probe/action, .* name sparsities"):
        product(small(), sparsities=["preset"])


def test_sparsities_may_be_numbers_and_pairs():
    written = product(small(), sparsities=["0.5", "0.6/0.7"])
    assert product(small(), sparsities=[0.5, (0.6, 0.7)]) == product(small(), sparsities=[0.5, [0.6, 0.7]]) == written
    assert product(small(), seeds=None) == product(small())
    assert product(small(), sparsities=np.array([0.5, 0.6]), seeds=np.arange(2)) == product(
        small(), sparsities=["0.5", "0.6"], seeds=range(2)
    )


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({"seeds": 3}, "seed=3: give several values"),
        ({"methods": "rlx2"}, "method='rlx2': give several values"),
        ({"sparsities": 0.9}, r"sparsities=0\.9: give several values"),
        ({"fields": {"gama": [0.9]}}, "unknown setting gama; name fields of Config"),
        ({"fields": {"sparsities": [0.9]}}, "unknown setting sparsities; name fields of Config"),
        ({"seeds": np.array(3)}, "give several values"),
    ],
)
def test_axes_that_are_none_are_refused_in_one_sentence(axes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        product(small(), **axes)


@pytest.mark.parametrize("text", ["much", "0.9/", "0.9/0.8/0.7"])
def test_a_sparsity_is_one_number_or_two(text):
    if text == "0.9/":
        assert product(small(), sparsities=[text]) == product(small(), sparsities=["0.9"])
    else:
        with pytest.raises(ConfigError, match=r"0\.98/0\.95 for actor and critics"):
            product(small(), sparsities=[text])


VARIED = {
    "seed": 5,
    "method": "rigl",
    "topology": "random",
    "actor_sparsity": 0.7,
    "critic_sparsity": 0.6,
    "actor_lr": 1e-2,
    "critic_lr": 1e-2,
    "alpha_lr": 1e-2,
    "gamma": 0.5,
    "tau": 0.5,
    "explore_noise": 0.5,
    "target_noise": 0.5,
    "target_noise_clip": 0.1,
    "drop_fraction": 0.1,
    "n_step": 2,
    "dynamic_buffer": False,
    "buffer_max": 600,
    "buffer_min": 200,
    "distance_threshold": 0.5,
    "drop_ratio": 0.5,
    "schedule_scale": 0.5,
    "score_evaluations": 2,
    "logger": "none",
}
STATIC = {
    "env": "probe/chain",
    "hidden": (16,),
    "batch_size": 8,
    "total_steps": 2400,
    "kernel_init": "lecun",
    "policy_delay": 4,
    "n_max": 4,
    "evolve_interval": 60,
    "evolve_until": 0.5,
    "n_step_delay": 400,
    "chunk_steps": 100,
    "reset_moments": False,
}


def chunk_of(configs):
    """What the chunk of their common program is made of."""
    program, schedule = build(configs), plans.common_schedule(configs)
    state = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
    return str(jax.make_jaxpr(program.chunk)(state, program.hparams, schedule))


def test_runs_share_a_program_exactly_when_they_differ_in_data_alone():
    assert set(VARIED) == SHARED
    one, other = product(small()), product(small(**VARIED))
    both = [*one, *other]
    assert lay_out(both).compilations == 1
    for name, value in STATIC.items():
        assert lay_out([*one, *product(small(**{name: value}))]).compilations == 2, name


def test_all_methods_share_the_schedule_of_the_one_that_does_most():
    configs = product(small(), methods=list(METHODS))
    assert plans.common_schedule(configs) == make_schedule(next(c for c in configs if c.method == "rlx2"))


@settings(max_examples=8)
@given(
    runs=st.integers(1, 40),
    programs=st.integers(1, 3),
    devices=st.integers(1, 9),
    limit=st.none() | st.integers(1, 9),
    fit=st.none() | st.integers(1, 50),
)
def test_batches_hold_every_run_once_and_fit(runs, programs, devices, limit, fit):
    configs = product(small(), seeds=range(runs), fields={"batch_size": [16, 24, 32][:programs]})
    size = lay_out(configs[:1]).batches[0].bytes_per_row
    room = None if fit is None else fit * size / plans.MEMORY_SHARE * 1.001
    plan = lay_out(configs, devices=devices, runs_per_device=limit, device_bytes=room)
    names = list(itertools.chain.from_iterable(batch.runs for batch in plan.batches))
    assert sorted(names) == sorted(run.name for run in plan.runs)
    assert len(set(names)) == len(names) == runs * programs
    most = min(limit or runs, fit or runs)
    for batch in plan.batches:
        assert batch.rows % devices == 0
        assert len(batch.runs) <= batch.rows < len(batch.runs) + devices + math.ceil(runs / most)
        assert batch.rows // devices <= most
    assert plan.compilations == programs, "all batches of a program have the same number of rows"
    assert len(plan.batches) == programs * math.ceil(runs / (most * devices))


def test_a_run_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"a run of td3 on probe/action needs .* lower --buffer_max or --hidden\.$"):
        lay_out(product(small()), device_bytes=1000)


def test_devices_asked_for_must_divide_the_runs():
    configs = product(small(), seeds=range(4))
    assert lay_out(configs, devices=2, pad=False).batches[0].rows == 4
    with pytest.raises(ConfigError, match="3 devices do not divide the 4 runs"):
        lay_out(configs, devices=3, pad=False)
    # Batches too, whose equal shares they may not divide.
    more = lay_out(product(small(), seeds=range(12)), devices=4, runs_per_device=2, pad=False).batches
    assert [(len(batch.runs), batch.rows) for batch in more] == [(8, 8), (4, 4)]


def test_packed_runs_are_processes_or_refused():
    configs = product(small(compute="packed"))
    assert lay_out(configs, parallel="processes").batches == ()
    with pytest.raises(ConfigError, match="--parallel=processes"):
        lay_out(configs)
    assert lay_out(product(small(compute="auto"))).batches, "auto is masked in a batch"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "hoper"}, "unknown env 'hoper'"),
        ({"hidden": (2, 2), "actor_sparsity": 0.99}, "without a link"),
        ({"ticket": "nowhere"}, "no masks at nowhere"),
    ],
)
@pytest.mark.parametrize("parallel", ["processes", "shard_map"])
def test_a_run_that_cannot_be_is_refused_before_any_is_begun(changes, sentence, parallel):
    with pytest.raises(RlxError, match=sentence):
        lay_out([*product(small()), *product(small(**changes))], parallel=parallel)


def alone(features, initial):
    """A network of a script."""
    return MLP(features, initial)


def test_what_stands_in_a_script_is_refused_before_workers_look_for_it(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "alone", alone, raising=False)
    config = small(network="__main__:alone")
    with pytest.raises(
        ConfigError, match=r"^network=__main__:alone is known to this process alone.* put it in a module"
    ):
        lay_out([resolve(config)], parallel="processes")
    assert lay_out([resolve(config)]).runs


def test_how_runs_are_computed_is_no_axis_and_may_change_between_starts():
    first = lay_out(product(small(), seeds=[0, 1]), parallel="processes")
    later = lay_out(product(small(compute="packed"), seeds=[0, 1, 2]), parallel="processes", held=first)
    assert [run.name for run in later.runs[:2]] == [run.name for run in first.runs]
    assert {run.config.compute for run in later.runs} == {"packed"}
    with pytest.raises(ConfigError, match=r"sweep\.compute: it says how .* give one value"):
        product(small(), fields={"compute": ["masked", "packed"]})


def test_a_plan_survives_its_file(tmp_path):
    plan = lay_out(product(small(), seeds=range(5), fields=SWEPT), devices=4, fields=SWEPT)
    assert plans.read(tmp_path) is None
    plans.write(tmp_path, plan)
    assert plans.read(tmp_path) == plan
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(WorkdirError, match="damaged"):
        plans.read(tmp_path)


def test_more_runs_extend_a_plan_and_leave_what_it_holds_alone():
    first = lay_out(product(small(), seeds=[1, 2]))
    asked = product(small(), seeds=[0, 1, 2, 3], fields={"gamma": [0.9, 0.99]})
    second = lay_out(asked, fields=("gamma",), held=first)
    assert second.runs[:2] == first.runs
    assert second.batches[:1] == first.batches
    assert len(second.runs) == len({run.name for run in second.runs}) == 8
    assert second.fields == ("gamma",)
    assert len(second.batches) == 2
    assert lay_out(asked, fields=("gamma",), held=second) == second


def test_a_plan_that_leaves_runs_out_or_lays_them_out_otherwise_is_refused():
    configs = product(small(), seeds=range(4))
    held = lay_out(configs, devices=4)
    with pytest.raises(WorkdirError, match=r"holds a sweep with 3 runs that these flags leave out \(.*seed1"):
        lay_out(configs[:1], held=held)
    with pytest.raises(WorkdirError, match="4 runs that these flags leave out"):
        lay_out(product(small(gamma=0.5), seeds=range(4)), held=held)
    with pytest.raises(WorkdirError, match="--parallel=shard_map; continue it so"):
        lay_out(configs, parallel="pmap", held=held)
    with pytest.raises(WorkdirError, match="which 3 devices do not divide"):
        lay_out(configs, devices=3, held=held)
    assert lay_out(configs, devices=2, held=held).batches == held.batches
    held = lay_out(configs, parallel="pmap", devices=4)
    assert lay_out(configs, parallel="pmap", devices=2, held=held).batches == held.batches


def test_names_are_short_enough_for_a_file_system_and_tell_runs_apart():
    configs = [resolve(small(hidden=(16,) * count, seed=seed)) for count in (200, 201) for seed in (0, 10)]
    names = [plans._name(config, ["hidden"]) for config in configs]
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= plans.LONGEST_NAME for name in names)
    assert [name.rpartition("-")[2] for name in names] == ["seed0", "seed10"] * 2


def test_the_directory_of_a_single_run_is_no_sweep(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"holds a single run, no sweep; name another --workdir\.$"):
        plans.read(tmp_path)


def test_names_say_what_a_run_is():
    names = [run.name for run in lay_out(product(small(hidden=(8, 8)), methods=["dense", "rlx2"])).runs]
    assert names == ["td3-probe-action-dense-seed0", "td3-probe-action-rlx2-0.9-0.9-seed0"]
    plan = lay_out([dataclasses.replace(c) for c in product(small(), fields={"tau": [0.1, 0.2]})])
    assert len({run.name for run in plan.runs}) == 2, "told apart even by what a name does not hold"
