"""Environments that are not the package's: found by name, checked before anything compiles, and used everywhere."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs, policies
from rlx2_jax.config import Config, resolve
from rlx2_jax.envs import State, own
from rlx2_jax.errors import ConfigError, DivergedError
from rlx2_jax.sweeps import sweep
from rlx2_jax.training import train
from tests.conftest import ROOT, cached, launch_here, small
from tests.test_run import flags_of, without_clocks

MODULE = next(
    code
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL)
    if "class Point" in code
)
"""What the documents show: an environment in less than thirty lines."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Working directory with a module of a name of its own; where its environment is to be found."""
    name = f"points_of_{tmp_path.parent.name}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield f"{name}:Point"
    sys.path[:] = before
    sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    before = dict(own._factories)
    yield
    own._factories.clear()
    own._factories.update(before)


class Point:
    """The same, with whatever a test wants otherwise."""

    observation_size = 2
    action_size = 1

    def __init__(self, **changes):
        vars(self).update(changes)

    def reset(self, key):
        x = jax.random.uniform(key, (2,), minval=-1.0)
        return State(x, x, jnp.zeros(()), jnp.asarray(False))

    def step(self, state, action):
        x = state.physics + 0.1 * action[0]
        return State(x, x, -jnp.sum(x**2), jnp.asarray(False))


def test_an_environment_is_named_by_its_place_by_a_registered_name_or_by_itself(place):
    """And one is made once per process."""
    envs.register("mine", Point)
    here = Point(name="this one")
    for name in (place, "mine", Config(env=here).env):
        env = envs.make(name)
        assert envs.make(name) is env
        assert (env.observation_size, env.action_size) == (2, 1)
        assert resolve(small(env=name)).backend == envs.JAX
    assert Config(env=here).env == "this one"
    assert Config(env=Point()).env == f"{__name__}:Point"
    with pytest.raises(ConfigError, match="registered mine, this one"):
        envs.make("pong")


def test_what_an_environment_gives_has_the_types_of_the_protocol(place):
    env = envs.make(place)
    first = jax.jit(env.reset)(jax.random.PRNGKey(0))
    state, rewards = jax.lax.scan(lambda s, _: (lambda t: (t, t.reward))(env.step(s, jnp.ones(1))), first, length=5)
    assert (state.observation.dtype, state.reward.dtype, state.terminated.dtype) == (jnp.float32, jnp.float32, bool)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert np.isfinite(rewards).all()


@pytest.mark.slow
def test_a_run_is_trained_stopped_resumed_evaluated_and_swept_from_the_command_line(place):
    """By launchers that have never heard of it, in this process and in workers."""
    flags = [*flags_of(small(env=place)), cached()]
    whole = launch_here("train.py", *flags, "--workdir=run")
    assert whole.returncode == 0, whole.stderr
    assert f"on {place}, sparsity" in whole.stderr
    again = launch_here("train.py", "--resume", "--workdir=run", cached())
    assert again.returncode == 0, again.stderr
    scored = launch_here("evaluate.py", "--workdir=run", "--episodes=4", "--json", cached())
    assert scored.returncode == 0, scored.stderr
    assert np.isfinite(json.loads(scored.stdout)["mean"])
    assert policies.load("run").about["env"] == place
    swept = [flag for flag in flags if not flag.startswith(("--seed", "--method"))]
    done = launch_here("sweep.py", *swept, "--seeds=1", "--methods=rlx2", "--workdir=sweep", "--parallel=processes")
    assert done.returncode == 0, done.stderr
    (ours,) = policies_of("sweep")
    assert ours == policies_of("run")[0]


def policies_of(directory):
    """Bytes of the weights of all runs below a directory."""
    found = sorted(Path(directory).rglob("policy.npz"))
    return [
        b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(policies.load(path).params)) for path in found
    ]


@pytest.mark.slow
def test_a_registered_environment_reaches_the_workers_if_they_can_import_it(place, tmp_path):
    config = small(env="mine")
    envs.register("mine", lambda: Point())
    with pytest.raises(ConfigError, match=r"^env mine is known to this process alone, .*package\.module:function"):
        sweep([config], tmp_path / "refused", parallel="processes", show_progress=False)
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())
    envs.register("mine", own.imported(place))
    done = sweep([config], tmp_path / "swept", parallel="processes", show_progress=False)
    assert done.finished


def test_an_object_is_trained_and_resumed_bit_for_bit(tmp_path):
    config = dataclasses.replace(small(checkpoint_every=400), env=Point(name="a point"))
    whole = train(config, tmp_path / "whole", show_progress=False)
    stop = lambda rows: (_ for _ in ()).throw(KeyboardInterrupt) if len(rows) == 2 else None
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "part", show_progress=False, on_report=stop)
    resumed = train(config, tmp_path / "part", resume=True, show_progress=False)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows)


def test_where_no_transition_is_finite_the_environment_is_to_blame(tmp_path):
    undefined = Point(step=lambda state, action: Point().step(state, action)._replace(reward=jnp.nan))
    with pytest.raises(DivergedError, match=r"mend the environment, which gave no other\.$"):
        train(small(env=undefined), tmp_path, show_progress=False)


def fails(*_):
    raise RuntimeError("no such luck.\nmore")


BROKEN = {
    "no size": (Point(observation_size="two"), "observation_size is 'two'; give it a whole number"),
    "no size at all": (Point(observation_size=True), "observation_size is True; give it a whole number"),
    "a key": (
        Point(reset=lambda key: Point().reset(key)._replace(physics=jax.random.wrap_key_data(key))),
        r"physics of key<fry>\[\] cannot be kept in files; keep jax\.random\.key_data",
    ),
    "no step": (Point(step=None), r"has no method step; see rlx2_jax\.envs\.Environment"),
    "error in reset": (Point(reset=fails), r"its reset raised RuntimeError \(no such luck\); mend it"),
    "error in step": (Point(step=fails), r"its step raised RuntimeError \(no such luck\)"),
    "no state": (Point(reset=lambda key: jnp.zeros(2)), r"reset gives .*; give an rlx2_jax\.envs\.State"),
    "wrong size": (Point(observation_size=3), r"reset gives observation of shape \[2\], not \[3\]"),
    "a reward too many": (
        Point(step=lambda s, a: s._replace(reward=jnp.zeros(2))),
        r"step gives reward of shape \[2\], not \[\]; one environment is one state",
    ),
    "other physics": (
        Point(step=lambda s, a: s._replace(physics=jnp.zeros(3))),
        r"step leaves physics of float32\[3\], reset gave float32\[2\]",
    ),
    "physics in a container": (
        Point(step=lambda s, a: s._replace(physics=(s.physics,))),
        r"step leaves physics of \[float32\[2\]\] in .*, reset gave float32\[2\]",
    ),
    "other kinds": (
        Point(step=lambda s, a: s._replace(physics=jnp.zeros(2, jnp.int32))),
        r"step leaves physics of int32\[2\], reset gave float32\[2\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_environment_that_breaks_the_protocol_is_refused_in_one_sentence(case):
    env, message = BROKEN[case]
    env.name = "a task"
    with pytest.raises(ConfigError, match=rf"^env a task:? {message}") as refused:
        envs.make(Config(env=env).env)
    assert "\n" not in str(refused.value)


def test_sizes_may_be_numpys_and_an_environment_is_looked_at_by_the_usual_rules():
    promoting = lambda s, a: s._replace(physics=s.physics + 0 * jnp.arange(2))
    env = Point(observation_size=np.int64(2), step=promoting, name="of numpy")
    with jax.numpy_dtype_promotion("strict"):
        made = envs.make(Config(env=env).env)
    assert type(made.observation_size) is int


class Maker:
    """What makes environments, and is none's place."""

    def make(self):
        return Point()


def test_sizes_that_are_arrays_are_numbers_to_all_that_reads_them():
    made = envs.make(Config(env=Point(action_size=np.array(1), name="of arrays")).env)
    assert (made.action_size, made.action_limits) == (1, ((-1.0, 1.0),))


@pytest.mark.parametrize("factory", [functools.partial(Point, name="x"), Maker().make, lambda: Point()])
def test_a_factory_that_no_place_names_is_known_to_this_process_alone(factory):
    envs.register("mine", factory)
    with pytest.raises(ConfigError, match=r"^env mine is known to this process alone"):
        own.place_of("mine")


def test_names_that_cannot_be_are_refused_in_one_sentence(place):
    module = place.partition(":")[0]
    with pytest.raises(ConfigError, match=r"^no_such_module:f cannot be imported: ModuleNotFoundError"):
        envs.make("no_such_module:f")
    with pytest.raises(ConfigError, match=rf"^{module}:Line cannot be imported: AttributeError"):
        envs.make(f"{module}:Line")
    with pytest.raises(ConfigError, match=r"^math:pi is no function"):
        envs.make("math:pi")
    with pytest.raises(ConfigError, match=r"^env math:cos: making it raised TypeError"):
        envs.make("math:cos")
    with pytest.raises(ConfigError, match=r"use one without a colon or a comma\.$"):
        envs.register("a:b", Point)
    for task, whose in (("hopper", "Brax's"), ("Hopper-v4", "Gymnasium's")):
        taken = rf"^env name '{task}' is that of a task of {whose}; give yours another\.$"
        with pytest.raises(ConfigError, match=taken):
            envs.register(task, Point)
        with pytest.raises(ConfigError, match=taken):
            Config(env=Point(name=task))
    with pytest.raises(ConfigError, match=r"^env name 'a,b': use a word without a comma\.$"):
        Config(env=Point(name="a,b"))
    Config(env=Point(name="same"))
    with pytest.raises(ConfigError, match=r"^two environments are called same; give each an attribute `name`"):
        Config(env=Point(name="same"))


def test_an_unknown_name_lists_families_and_how_to_get_them():
    with pytest.raises(ConfigError, match=r"Brax's ant, .*Gymnasium's .*Hopper-v4.*pip install 'rlx2-jax\[mujoco\]'"):
        envs.make("pong")
    with pytest.raises(ConfigError, match=r"^unknown env 'Hoper-v4' \(did you mean Hopper-v4\?\); there are "):
        envs.make("Hoper-v4")
    with pytest.raises(ConfigError, match=r"^unknown env 'CheetahRun' \(did you mean playground/CheetahRun\?\); "):
        envs.make("CheetahRun")
    with pytest.raises(ConfigError, match=r"^Hopper-v4 has no backend 'spring'; valid: mujoco, mjx\.$"):
        resolve(small(env="Hopper-v4", backend="spring"))
    with pytest.raises(ConfigError, match=r"^hopper has no backend 'mujoco'; valid: generalized, "):
        resolve(small(env="hopper", backend="mujoco"))


def test_a_launcher_refuses_what_cannot_be_imported_with_exit_code_2(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--env=nowhere:f", f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nowhere:f cannot be imported" in done.stderr
    assert not (tmp_path / "w").exists()
