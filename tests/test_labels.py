"""Names and limits of what environments give and take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs
from rlx2_jax.envs import brax, gym_tasks
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import ConfigError

GYM = tuple(gym_tasks.TASKS)


def numbered_fields(task):
    """Fields in which each entry is a small number of its own, and what each number stands for."""
    model, names, fields = task.model, {}, {}
    sizes = {"qpos": (model.nq,), "qvel": (model.nv,), "cinert": (model.nbody, 10), "cvel": (model.nbody, 6)}
    sizes |= {"qfrc_actuator": (model.nv,), "cfrc_ext": (model.nbody, 6)}
    for field, shape in sizes.items():
        # Limits of forces and velocities are 1 and more.
        numbers = (1 + len(names) + np.arange(np.prod(shape))) / 2**11
        names |= {number: (field, *np.unravel_index(i, shape)) for i, number in enumerate(numbers)}
        fields[field] = jnp.asarray(numbers.reshape(shape), jnp.float32)
    return gym_tasks.Fields(displacement=jnp.zeros(()), **fields), names


@pytest.mark.parametrize("name", GYM)
def test_names_are_in_the_order_of_what_a_task_sees(name):
    """Each entry's name is of the field, and of the body or joint, that the entry is read from."""
    task = gym_tasks.load(name)
    fields, sources = numbered_fields(task)
    seen, names = np.asarray(task.observation(fields), np.float64), task.observation_names()
    assert len(names) == len(seen) == len(set(names))
    model = task.model
    body = lambda i: model.body(i).name or f"body_{i}"
    ends = {"qpos": ("position", "angle"), "qvel": ("velocity",), "qfrc_actuator": ("actuator_force",)}
    for value, said in zip(seen, names, strict=True):
        if value == 0:
            assert name == "Ant-v3" and "contact" in said
            continue
        field, *place = sources[value]
        if field == "cfrc_ext":
            axis, kind = "xyz"[place[1] % 3], ("torque", "force")[place[1] // 3]
            assert said == f"{body(place[0])}_{axis}_contact_{kind}"
        elif field == "cvel":
            axis, kind = "xyz"[place[1] % 3], ("angular", "linear")[place[1] // 3]
            assert said == f"{body(place[0])}_{axis}_{kind}_velocity"
        elif field == "cinert":
            assert said == f"{body(place[0])}_{gym_tasks.INERTIA[place[1]]}"
        else:
            owner = np.searchsorted(model.jnt_qposadr if field == "qpos" else model.jnt_dofadr, place[0], "right") - 1
            assert said.startswith(model.joint(int(owner)).name)
            assert said.endswith(ends[field]) or "orientation" in said


BRAX = [("inverted_pendulum", "generalized"), *((name, "spring") for name in brax.TASKS)]


@pytest.mark.parametrize(("name", "backend"), [*((name, None) for name in (*GYM, "probe/action")), *BRAX])
def test_there_is_a_name_for_each_entry_and_limits_for_each_action(name, backend):
    env = envs.make(name, backend)
    labels = Labels.of(env)
    assert len(set(labels.observation_names)) == env.observation_size
    assert len(set(labels.action_names)) == len(labels.action_limits) == env.action_size


def test_names_and_limits_that_are_known():
    hopper, pendulum, humanoid = (Labels.of(envs.make(n)) for n in ("Hopper-v4", "InvertedPendulum-v4", "Humanoid-v5"))
    assert hopper.observation_names[:3] == ("rootz_position", "rooty_angle", "thigh_joint_angle")
    assert hopper.action_names == ("thigh_joint", "leg_joint", "foot_joint")
    assert pendulum.observation_names == (
        "slider_position", "hinge_angle", "slider_velocity", "hinge_angular_velocity",
    )  # fmt: skip
    assert (pendulum.action_names, pendulum.action_limits) == (("slide",), ((-3.0, 3.0),))
    assert humanoid.action_limits == ((-0.4, 0.4),) * 17
    assert humanoid.observation_names[:5] == ("root_z_position", *(f"root_orientation_{p}" for p in "wxyz"))
    assert Labels.of(envs.make("humanoid", "spring")).action_limits[0] == pytest.approx((-0.4, 0.4))


def test_limits_are_the_controls_of_the_extreme_actions(monkeypatch):
    env, got = envs.make("InvertedPendulum-v4"), []
    simulated = env.engine.step
    step = lambda physics, ctrl, done: got.append(ctrl) or simulated(physics, ctrl, done)
    monkeypatch.setattr(env.engine, "step", step)
    state = env.reset(jax.random.PRNGKey(0))
    for action in (-1.0, 1.0):
        env.step(state, jnp.full(1, action))
    np.testing.assert_array_equal(np.stack(got, 1), Labels.of(env).action_limits)


class Named:
    """A point whose names are given."""

    observation_size, action_size = 2, 1

    def __init__(self, **given):
        vars(self).update(given)

    def reset(self, key):
        return envs.State(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.asarray(False))

    def step(self, state, action):
        return state


def test_an_environment_of_ones_own_may_say_names_and_limits():
    given = {"observation_names": ["x", "y"], "action_names": ("push",), "action_limits": [[0, 5]]}
    envs.register("named", lambda: Named(**given))
    assert Labels.of(envs.make("named")) == Labels(("x", "y"), ("push",), ((0.0, 5.0),))
    envs.register("named", lambda: Named(action_names=["push"]))
    assert Labels.of(envs.make("named")) == Labels(("observation_0", "observation_1"), ("push",), ((-1.0, 1.0),))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"observation_names": ["x"]}, "observation_names is no sequence of 2"),
        ({"observation_names": "xy"}, "observation_names is no sequence of 2"),
        ({"observation_names": ["x", ""]}, "something else than printable words"),
        ({"action_names": [3]}, "something else than printable words"),
        ({"action_limits": [(1, -1)]}, "pairs of finite numbers"),
        ({"action_limits": [(0, float("inf"))]}, "pairs of finite numbers"),
        ({"action_limits": [3]}, "pairs of finite numbers"),
        ({"action_limits": 3}, "action_limits is no sequence of 1"),
    ],
)
def test_names_and_limits_that_cannot_be_are_refused_before_anything_compiles(given, said):
    envs.register("misnamed", lambda: Named(**given))
    with pytest.raises(ConfigError, match=rf"^env misnamed: {said}|^env misnamed: .*{said}.*; see .*\.$"):
        envs.make("misnamed")
