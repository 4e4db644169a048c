"""Configurations: every refusal at the door, what is derived, and the traced values made of it."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlx2_jax.config import AGENTS, NEVER, Config, RunConfig, make_schedule, methods, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.sparse.densities import erdos_renyi_densities
from tests.conftest import small

NAMES = {
    "agent": AGENTS,
    "method": tuple(methods.METHODS),
    "topology": methods.TOPOLOGIES,
    "initial_mask": ("magnitude", "random"),
    "distance": ("half_mse", "l2"),
    "drop_rule": ("once", "until_close"),
    "sac_explore": ("sample", "mode"),
}

REFUSED = {
    "num_envs=0": ({"num_envs": 0}, "at least 1"),
    "total_steps<num_envs": ({"total_steps": 3}, "num_envs=4"),
    "schedule_scale=0": ({"schedule_scale": 0.0}, "positive"),
    "chunk_steps>eval_every": ({"chunk_steps": 401}, "must not decrease"),
    "chunk_steps=0": ({"chunk_steps": 0}, "must not decrease"),
    "eval_every=0": ({"eval_every": 0}, "must not decrease"),
    "eval_every>total_steps": ({"eval_every": 1201}, "must not decrease"),
    "n_step=0": ({"n_step": 0}, "at least 1 step"),
    "n_step>n_max": ({"n_step": 5, "n_max": 4}, "raise n_max to 5"),
    "warmup_steps<window": ({"warmup_steps": 19}, "use at least 20"),
    "warmup_steps=total_steps": ({"warmup_steps": 1200}, "use more than 1200"),
    "warmup_steps without an iteration after it": ({"warmup_steps": 1197}, "use more than 1200"),
    "num_envs a text": ({"num_envs": "4"}, "num_envs='4': use a whole number"),
    "seed=1.5": ({"seed": 1.5}, "use a whole number"),
    "gamma a text": ({"gamma": "high"}, "use a number"),
    "dynamic_buffer=1": ({"dynamic_buffer": 1}, "use true or false"),
    "buffer_max<batch": ({"batch_size": 64, "buffer_max": 63}, "at least 64"),
    "buffer_max<window": ({"buffer_max": 19, "buffer_min": 19}, "at least 20"),
    "buffer_min<batch": ({"batch_size": 64, "buffer_min": 63}, "between 64"),
    "buffer_min>buffer_max": ({"buffer_min": 801}, "buffer_max=800"),
    "hidden=()": ({"hidden": ()}, "at least one width"),
    "hidden too deep to be packed": ({"hidden": (4,) * 16, "compute": "packed"}, "takes 15; use compute=masked"),
    "hidden=0": ({"hidden": (16, 0)}, "at least one width"),
    "hidden=16.5": ({"hidden": (16.5,)}, "whole number"),
    "schedule_scale=inf": ({"schedule_scale": math.inf}, "finite"),
    "schedule_scale=1e308": ({"schedule_scale": 1e308}, "positive factor of at most 715"),
    "update_ratio=1e300": ({"update_ratio": 1e300}, "updates; use at most"),
    "update_ratio=-1": ({"update_ratio": -1.0}, "positive number"),
    "update_ratio=nan": ({"update_ratio": math.nan}, "positive number"),
    "update_ratio=inf": ({"update_ratio": math.inf}, "finite"),
    "n_step_delay=-5": ({"n_step_delay": -5}, "zero or more"),
    "actor_lr=inf": ({"actor_lr": math.inf}, "finite"),
    "explore_noise=inf": ({"explore_noise": math.inf}, "finite"),
    "too many updates": ({"total_steps": 2_000_000_000, "update_ratio": 4.0}, "updates; use at most"),
    "no update": ({"update_ratio": 1e-5}, "whole cycles of policy_delay=2 updates; use an update_ratio of 0.0005"),
    "policy_delay=10000": ({"policy_delay": 10_000}, "use an update_ratio of 2.5"),
    "total_steps<iteration": ({"policy_delay": 3000, "total_steps": 1200}, "ends in the warm-up"),
}
AT_LEAST_1 = (
    "episode_length",
    "batch_size",
    "eval_episodes",
    "reset_pool",
    "score_evaluations",
    "checkpoint_every",
    "evolve_interval",
    "buffer_check_interval",
)
REFUSED |= {f"{name}={value}": ({name: value}, "at least 1") for name in AT_LEAST_1 for value in (0, -1)}
for _name in ("actor_lr", "critic_lr", "alpha_lr", "update_ratio"):
    REFUSED[f"{_name}=0"] = ({_name: 0.0}, "positive number")
for _name in ("explore_noise", "target_noise", "target_noise_clip", "distance_threshold"):
    REFUSED[f"{_name}=-0.1"] = ({_name: -0.1}, "zero or more")
for _name in ("gamma", "tau", "drop_fraction", "drop_ratio", "evolve_until"):
    for _value in (-0.1, 1.1, math.nan):
        REFUSED[f"{_name}={_value}"] = ({_name: _value}, r"in \[0, 1\]")
for _name in ("actor_sparsity", "critic_sparsity"):
    for _value in (-0.1, 1.0):
        REFUSED[f"{_name}={_value}"] = ({_name: _value}, r"in \[0, 1\)")


@pytest.mark.parametrize(("changes", "mend"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence_that_says_how_to_mend_it(changes, mend):
    with pytest.raises(ConfigError, match=mend) as refused:
        resolve(small(**changes))
    message = str(refused.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert any(field.name in message for field in dataclasses.fields(Config))


NUMBERS = [f.name for f in dataclasses.fields(Config) if isinstance(f.default, float) or "float" in str(f.type)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324])
def test_the_most_extreme_numbers_are_taken_or_refused_by_their_name(name, value):
    refused = None
    try:
        make_schedule(resolve(small(**{name: value}, evolve_interval=None, n_step_delay=None)))
    except ConfigError as error:
        refused = str(error)
    assert refused is not None or math.isfinite(value)
    assert refused is None or refused.startswith(f"{name}=") or f" x {name}=" in refused


def test_numbers_may_be_those_of_numpy_and_whole_ones_may_have_a_point():
    written = small(warmup_steps=2e2, seed=np.int64(3), hidden=[np.int32(16), 16], gamma=np.float64(0.5))
    usual = small(warmup_steps=200, seed=3, hidden=(16, 16), gamma=0.5)
    assert written == usual and hash(resolve(written)) == hash(resolve(usual))
    assert json.dumps(resolve(written).to_dict()) == json.dumps(resolve(usual).to_dict())
    values = {"warmup_steps": 2e2, "hidden": [16.0, 16], "reset_moments": np.bool_(True)}
    assert Config.from_dict(values) == Config(warmup_steps=200, hidden=np.array([16, 16]))


@pytest.mark.parametrize("name", ["agent", "network", "method"])
def test_what_a_person_wrote_is_named_by_its_place_and_not_given(name):
    with pytest.raises(ConfigError, match=rf"^{name} is of type function; name it as package\.module:\w+, or __main__"):
        resolve(small(**{name: small}))


def test_an_environment_is_given_and_not_its_class():
    with pytest.raises(ConfigError, match=r"env is the class Config; give an environment, such as Config\(\)"):
        Config(env=Config)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_lists_the_valid_ones(name):
    with pytest.raises(ConfigError, match=f"unknown {name} 'nonsense'") as refused:
        resolve(small(**{name: "nonsense"}))
    assert all(valid in str(refused.value) for valid in NAMES[name])
    for valid in NAMES[name]:
        resolve(small(**{name: valid}))


def test_help_names_what_a_setting_can_be():
    chosen = {f.name: f.metadata for f in dataclasses.fields(Config) if f.metadata["choices"]}
    kinds = {"backend", "compute", "critic_network", "kernel_init", "logger", "network", "ticket_weights"}
    assert chosen.keys() == {*NAMES} | kinds
    for name, about in chosen.items():
        assert all(choice in about["help"].partition(": ")[2] for choice in about["choices"]), name


@pytest.mark.parametrize("value", [0, -1])
def test_a_policy_delay_below_1_is_refused_by_its_name(value):
    with pytest.raises(ConfigError, match=r"policy_delay.*at least 1"):
        resolve(small(policy_delay=value))


@pytest.mark.parametrize("update_ratio", [1e-6, 0.0007131])
def test_the_update_ratio_advised_is_accepted(update_ratio):
    with pytest.raises(ConfigError, match="use an update_ratio of") as refused:
        resolve(small(update_ratio=update_ratio, total_steps=100_000))
    advised = float(str(refused.value).split()[-1].removesuffix("."))
    resolve(small(update_ratio=advised, total_steps=100_000))


@pytest.mark.parametrize(
    ("changes", "steps", "updates"),
    [
        ({}, 4, 4),
        ({"num_envs": 1}, 2, 2),
        ({"num_envs": 1, "agent": "sac"}, 1, 1),
        ({"policy_delay": 3}, 12, 12),
        ({"policy_delay": 8}, 8, 8),
        ({"update_ratio": 0.1}, 20, 2),
        ({"update_ratio": 1.25}, 8, 10),
        ({"update_ratio": 0.333333, "num_envs": 1, "policy_delay": 1}, 3, 1),
    ],
    ids=str,
)
def test_an_iteration_is_as_long_as_whole_cycles_of_updates_need(changes, steps, updates):
    c = resolve(small(**changes))
    assert (c.steps_per_iteration, c.updates_per_iteration) == (steps, updates)


@pytest.mark.parametrize("name", ["actor", "critic"])
@pytest.mark.parametrize("method", ["rlx2", "ss"])
def test_a_sparsity_these_layers_cannot_have_is_refused_with_its_flag(name, method):
    config = resolve(small(method=method, **{f"{name}_sparsity": 0.999}))
    with pytest.raises(ConfigError, match=f"{name}_sparsity=0.999.*use a lower one"):
        make_hparams(config, 3, 1)


CONFIGS = st.builds(
    small,
    agent=st.sampled_from(AGENTS),
    method=st.sampled_from(tuple(methods.METHODS)),
    num_envs=st.sampled_from([1, 2, 3, 4, 6, 20]),
    update_ratio=st.sampled_from([None, 0.1, 0.25, 1.0, 1.25, 3.0]),
    policy_delay=st.sampled_from([None, 1, 2, 3, 8]),
    total_steps=st.integers(2000, 50_000),
    eval_every=st.one_of(st.none(), st.integers(1000, 2000)),
    chunk_steps=st.one_of(st.none(), st.integers(10, 1000)),
    schedule_scale=st.one_of(st.none(), st.floats(0.001, 1)),
    n_step=st.one_of(st.none(), st.integers(1, 5)),
    warmup_steps=st.one_of(st.none(), st.integers(150, 1000)),
    evolve_interval=st.none(),
    n_step_delay=st.one_of(st.none(), st.just(0)),
    buffer_max=st.none(),
    buffer_min=st.none(),
    buffer_check_interval=st.none(),
)


def resolved(config):
    """Resolve, or an example to be skipped where the configuration cannot be."""
    try:
        return resolve(config)
    except ConfigError:
        assume(False)


@given(CONFIGS)
def test_resolving_twice_is_resolving_once(config):
    once = resolved(config)
    assert resolve(once) == once


NOTHING_DERIVED = ("critic_network", "ticket")
"""Settings that stay None where they are left out."""


def test_what_is_resolved_leaves_nothing_open_but_what_nothing_is_derived_for():
    written = {f.name: f.type for f in dataclasses.fields(Config)}
    resolved = {f.name: f.type for f in dataclasses.fields(RunConfig)}
    assert list(resolved) == list(written)
    assert tuple(name for name, kind in resolved.items() if "None" in kind) == NOTHING_DERIVED
    derived = {name: kind for name, kind in resolved.items() if name not in NOTHING_DERIVED}
    assert all(kind == written[name].removesuffix(" | None") for name, kind in derived.items())
    once = resolve(small())
    assert type(once) is type(resolve(once)) is type(dataclasses.replace(once, seed=1)) is RunConfig
    assert RunConfig.from_dict(once.to_dict()) == once
    with pytest.raises(ConfigError, match=r"backend=None: use a text\.$"):
        RunConfig.from_dict(small().to_dict())
    with pytest.raises(ConfigError, match=r"fields \['backend', .*'warmup_steps'\] are missing; give all"):
        RunConfig.from_dict({"seed": 1})


def test_a_written_configuration_is_equal_to_a_resolved_one_of_the_same_settings():
    once = resolve(small())
    written = Config.from_dict(once.to_dict())
    assert type(written) is Config
    assert written == once == written and hash(written) == hash(once)
    assert small() != once != dataclasses.replace(once, seed=1)


def test_resolving_opens_no_file(monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError(arguments)

    resolve(small())  # An agent's module is read when it is first asked for.
    for place in ("builtins.open", "io.open", "os.open", "os.stat", "os.listdir"):
        monkeypatch.setattr(place, refuse)
    assert resolve(small(ticket="nowhere")).ticket == "nowhere"


@given(CONFIGS)
def test_whole_iterations_make_a_chunk_whole_chunks_an_evaluation_whole_evaluations_the_run(config):
    c = resolved(config)
    assert c.chunk_steps == c.iterations_per_chunk * c.steps_per_iteration
    assert c.eval_every == c.chunks_per_evaluation * c.chunk_steps
    assert c.total_steps == c.num_evaluations * c.eval_every
    assert c.total_steps >= config.total_steps
    steps, cycles = c.steps_per_iteration // c.num_envs, c.updates_per_iteration / c.delay
    assert c.steps_per_iteration == steps * c.num_envs
    assert c.updates_per_iteration == pytest.approx(c.steps_per_iteration * c.ratio)
    assert cycles == round(cycles) >= 1
    assert not any((fewer * cycles / steps).is_integer() for fewer in range(1, steps)), "no longer than it has to be"
    assert tuple(name for name, value in vars(c).items() if value is None) == NOTHING_DERIVED


@given(CONFIGS)
def test_a_configuration_survives_json(config):
    for c in (config, resolved(config)):
        assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c


def test_from_dict_names_fields_it_does_not_know_and_those_it_does():
    with pytest.raises(ConfigError, match=r"unknown configuration fields .*'colour'.*'method'"):
        Config.from_dict({"colour": "red", "method": "rlx2"})


def test_many_environments_need_no_other_setting():
    for changes in ({"num_envs": 512}, {"num_envs": 1024, "total_steps": 100_000}):
        config = resolve(Config(env="ant", **changes))
        assert config.buffer_min >= (config.n_max + 2) * config.num_envs


def test_evaluations_are_as_far_apart_as_the_physics_makes_them_dear():
    every = lambda env, **changes: resolve(Config(env=env, **changes)).eval_every
    assert every("Hopper-v4", backend="mujoco") == 5_000
    assert every("Hopper-v4", backend="mjx") == every("halfcheetah") == every("playground/CheetahRun") == 25_000
    assert every("halfcheetah", total_steps=20_000) == 5_000, "four, however short"
    length = resolve(Config(env="halfcheetah", total_steps=50_000))
    assert (length.total_steps, length.eval_every) == (52_000, 13_000), "12,000 would make five, and 60,000 steps"
    length = resolve(Config(env="halfcheetah", total_steps=8_563))
    assert (length.total_steps, length.eval_every) == (10_000, 2_000), "3,000 would make three"
    assert every("inverted_pendulum") == 1_000, "twenty or more of a task that is learned in minutes"


def test_points_in_time_scale_with_the_length_of_the_run():
    at = lambda **changes: resolve(Config(env="hopper", **changes))
    paper = at(total_steps=3_000_000)
    assert paper.warmup_steps == 25_000
    assert paper.evolve_interval == paper.buffer_check_interval == 10_000
    assert paper.n_step_delay == 300_000
    assert (paper.buffer_max, paper.buffer_min) == (1_000_000, 100_000)
    assert (paper.eval_every, paper.score_evaluations) == (25_000, 12)
    tenth = at(total_steps=300_000)
    for name in ("warmup_steps", "evolve_interval", "n_step_delay", "buffer_check_interval", "buffer_min"):
        assert getattr(tenth, name) == getattr(paper, name) / 10
    assert tenth.buffer_max == 300_000, "the ring never holds more than the run"
    # What is counted in updates comes at the same step, however many updates a step makes.
    for ratio in (0.5, 2.0):
        other = at(total_steps=300_000, update_ratio=ratio)
        assert (other.evolve_interval, other.n_step_delay) == (1000 * ratio, 30_000 * ratio)
        assert other.buffer_check_interval == 1000
    assert at(total_steps=5_000, update_ratio=4.0).evolve_interval == 80, "no iteration makes two events of a network"
    unscaled = at(total_steps=300_000, schedule_scale=1.0, n_step_delay=7)
    assert unscaled.evolve_interval == 10_000
    assert unscaled.n_step_delay == 7, "what is given is taken as given"
    sac = at(total_steps=3_000_000, agent="sac")
    assert (sac.buffer_max, sac.buffer_min, sac.policy_delay) == (3_000_000, 200_000, 1)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_method_decides_its_mechanisms_and_an_ablation_overrules_it(method):
    row = methods.METHODS[method]
    c = resolve(small(method=method))
    assert (c.topology, c.n_step, c.dynamic_buffer) == (row.topology, row.n_step, row.dynamic_buffer)
    assert c.actor_sparsity == (0.0 if row.kind == "dense" else 0.9)
    c = resolve(small(method=method, topology="random", n_step=2, dynamic_buffer=not row.dynamic_buffer))
    assert (c.topology, c.n_step, c.dynamic_buffer) == ("random", 2, not row.dynamic_buffer)


def test_hparams_hold_the_links_of_erdos_renyi():
    config = resolve(small(actor_sparsity=0.8, critic_sparsity=0.5))
    hparams = make_hparams(config, 3, 1)
    for links, shapes, sparsity in (
        (hparams.actor_links, [(3, 16), (16, 16), (16, 1)], 0.8),
        (hparams.critic_links, [(4, 16), (16, 16), (16, 1)], 0.5),
    ):
        expected = np.multiply(erdos_renyi_densities(shapes, sparsity), [i * o for i, o in shapes])
        np.testing.assert_array_equal(links, np.round(expected))


def test_a_dense_run_has_all_links_and_a_tiny_one_a_narrow_block():
    dense = make_hparams(resolve(small(method="dense")), 3, 1)
    np.testing.assert_array_equal(dense.actor_links, [48, 256, 16])
    tiny = make_hparams(resolve(small(method="tiny", actor_sparsity=0.8)), 3, 1)
    w = int(tiny.actor_width)
    np.testing.assert_array_equal(tiny.actor_links, [3 * w, w * w, w])
    assert w < 16


def test_hparams_of_all_methods_agents_apart_have_one_structure():
    for agent in AGENTS:
        specs = {
            str(jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), make_hparams(resolve(c), 3, 1)))
            for c in (small(agent=agent, method=m) for m in methods.METHODS if (agent, m) != ("droq", "tiny"))
        }
        assert len(specs) == 1


def test_a_fixed_topology_and_a_one_step_target_never_come_to_their_events():
    schedule = make_schedule(resolve(small(method="dense")))
    assert schedule.evolve_interval == schedule.n_step_delay == NEVER
    assert make_hparams(resolve(small(method="dense")), 3, 1).drop_fraction == 0


@given(st.integers(1, 9), st.integers(0, 60), st.integers(1, 3))
def test_the_updates_of_a_run_are_those_of_its_iterations_after_the_warm_up(num_envs, warmup, updates):
    config = small(num_envs=num_envs, warmup_steps=100 + warmup, update_ratio=updates / 2, chunk_steps=200)
    c = resolve(config)
    learning = sum(steps >= c.warmup_steps for steps in range(0, c.total_steps, c.steps_per_iteration))
    assert c.updates == learning * c.updates_per_iteration
    assert make_schedule(c).critic_evolve_end == c.updates


def test_topology_ends_after_its_share_of_the_optimiser_calls_of_each_network():
    schedule = make_schedule(resolve(small(evolve_until=0.5, update_ratio=2.0)))
    assert schedule.critic_evolve_end == (1200 - 200) * 2 * 0.5
    assert schedule.actor_evolve_end == (1200 - 200) * 2 * 0.5 / 2
    assert all(leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(schedule))
