"""Gymnasium's MuJoCo tasks: the same as gymnasium's own, wherever and however many at once they run."""

import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import warnings

import chex
import gymnasium.envs.mujoco
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx2_jax import envs, policies
from rlx2_jax.envs import gym, gym_tasks, mujoco
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import limits, native
from rlx2_jax.sweeps import product, sweep
from rlx2_jax.training import train
from tests.conftest import ROOT, assert_finite, equations, small
from tests.test_run import without_clocks

TASKS = tuple(gym_tasks.TASKS)
LATEST = tuple(name for name in TASKS if name.endswith("5"))
needs_native = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")

KEY = jax.random.key(0)
STEPS = 2000


def original(name):
    """Gymnasium's own environment, without wrappers."""
    from gymnasium.envs import registration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = registration.spec(name.replace("v3", "v4"))
    return registration.load_env_creator(spec.entry_point)()


@functools.cache
def made(name):
    """Our environment on the C library, with its functions compiled: of one state, and of many."""
    env = envs.make(name, "mujoco")
    return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def first(name, count=3):
    """Initial states, and actions for them."""
    env, reset, _ = made(name)
    actions = jax.random.uniform(KEY, (count, env.action_size), minval=-1.0, maxval=1.0)
    return reset(jax.random.split(KEY, count)), actions


def doubles(physics):
    """Words as the values that they are."""
    return np.asarray(physics).view(np.float64)


def recorded(name, env, steps):
    """Random actions through gymnasium, and what it gave: a dictionary of arrays `[steps, ...]`."""
    theirs, rng, rows = original(name), np.random.default_rng(0), []
    largest = theirs.action_space.high[0]
    begins, seed = True, 0
    for action in rng.uniform(-1, 1, (steps, env.action_size)).astype(np.float32):
        if begins:
            theirs.reset(seed=seed)
        start, fresh = env.engine.pack(theirs.data), begins
        observation, reward, begins, *_ = theirs.step(action * largest)
        seed += begins
        rows.append(
            {
                "action": action,
                "begins": fresh,
                "start": start,
                "observation": observation,
                "reward": reward,
                "terminated": begins,
                "physics": env.engine.pack(theirs.data),
            }
        )
    return {field: np.array([row[field] for row in rows]) for field in rows[0]}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_gymnasiums_step_by_step(name):
    """Simulations to the last bit, over whole episodes; what the task makes of them to float32's rounding."""
    env = made(name)[0]
    theirs = recorded(name, env, STEPS)

    def step(state, given):
        action, begins, start = given
        state = state._replace(physics=jnp.where(begins, start, state.physics), terminated=state.terminated & ~begins)
        state = env.step(state, action)
        return state, state

    given = theirs["action"], theirs["begins"], theirs["start"]
    ours = jax.jit(lambda state, given: jax.lax.scan(step, state, given)[1])(env.reset(KEY), given)
    np.testing.assert_array_equal(ours.physics, theirs["physics"])
    np.testing.assert_array_equal(ours.terminated, theirs["terminated"])
    seen = np.asarray(ours.observation)
    if name == "Ant-v3":
        seen, zeros = np.split(seen, [27], axis=-1)
        assert zeros.shape[-1] == 84 and not zeros.any()
    np.testing.assert_array_equal(seen, theirs["observation"].astype(np.float32))
    np.testing.assert_allclose(ours.reward, theirs["reward"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*LATEST, "InvertedPendulum-v4"])
def test_initial_states_are_distributed_as_gymnasiums(name):
    env, _, _ = made(name)
    theirs = original(name)
    count = 1000
    start = np.concatenate([theirs.init_qpos, theirs.init_qvel])
    taken = []
    for seed in range(count):
        theirs.reset(seed=seed)
        taken.append(np.concatenate([theirs.data.qpos, theirs.data.qvel]) - start)
    expected = np.array(taken)
    ours = np.asarray(jax.vmap(env.task.noise)(jax.random.split(KEY, count)))
    scale = expected.std(0)
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(ours, 0) / scale, moment(expected, 0) / scale, atol=0.2)
    uniform = np.abs(expected).max(0) < 2 * scale
    np.testing.assert_allclose(np.abs(ours).max(0)[uniform], np.abs(expected).max(0)[uniform], rtol=0.05)
    assert (np.abs(ours).max(0)[~uniform] > 2.5 * scale[~uniform]).all()


@pytest.mark.parametrize("name", ["Hopper-v4", "Humanoid-v5"])
def test_a_reset_is_gymnasiums_with_the_noise_that_was_drawn(name):
    env = made(name)[0]
    theirs = original(name)
    state = jax.jit(env.reset)(KEY)
    noise = np.asarray(env.task.noise(KEY), np.float64)
    nq = theirs.model.nq
    theirs.reset()
    import mujoco as library

    library.mj_resetData(theirs.model, theirs.data)
    theirs.set_state(theirs.init_qpos + noise[:nq], theirs.init_qvel + noise[nq:])
    np.testing.assert_array_equal(state.physics, env.engine.pack(theirs.data))
    np.testing.assert_array_equal(state.observation, theirs._get_obs().astype(np.float32))
    assert not state.reward and not state.terminated


@pytest.mark.parametrize("name", ["Humanoid-v4", "InvertedPendulum-v5"])
def test_actions_stand_for_the_tasks_own_range(name):
    env, _, step = made(name)
    state, _ = first(name, 2)
    stepped = step(state, jnp.array([[1.0], [-1.0]]) * jnp.ones(env.action_size))
    low, high = original(name).action_space.low, original(name).action_space.high
    data = doubles(stepped.physics)
    for row, bound in zip(data, (high, low), strict=True):
        assert any((row[i : i + bound.size] == bound).all() for i in range(row.size - bound.size))


@needs_native
def test_many_runs_of_many_environments_are_one_call_with_the_bits_of_each_alone():
    env = made("Hopper-v4")[0]
    state, actions = first("Hopper-v4", 6)
    step = jax.jit(env.step)
    alone = [step(jax.tree.map(lambda x, i=i: x[i], state), actions[i]) for i in range(6)]
    alone = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    grid = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), (state, actions))
    nested = jax.vmap(jax.vmap(env.step))
    together = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), jax.jit(nested)(*grid))
    np.testing.assert_array_equal(together.physics, alone.physics)
    np.testing.assert_array_equal(together.observation, alone.observation)
    calls = [name for name, _ in equations(jax.make_jaxpr(nested)(*grid).jaxpr) if "ffi" in name]
    assert len(calls) == 1


@needs_native
def test_the_number_of_threads_changes_nothing():
    state, actions = first("HalfCheetah-v4", 8)
    step = made("HalfCheetah-v4")[2]
    library = native.load()
    found = []
    try:
        for threads in (1, 2):
            library.rlx2_use_threads(threads)
            found.append(step(state, actions))
    finally:
        library.rlx2_use_threads(len(limits.cores()))
    chex.assert_trees_all_equal(*found)


def test_values_too_small_for_normal_numbers_are_kept():
    """As by MuJoCo, though the threads of compiled programs flush them to zero."""
    import mujoco as library

    env, _, step = made("Swimmer-v4")
    data = library.MjData(env.task.model)
    data.qvel[0] = 1e-310
    library.mj_forward(env.task.model, data)
    state = first("Swimmer-v4", 1)[0]._replace(physics=env.engine.pack(data)[None])
    stepped = step(state, jnp.zeros((1, env.action_size)))
    library.mj_step(env.task.model, data, nstep=env.task.frame_skip)
    assert 0 < data.qpos[0] < 1e-310
    np.testing.assert_array_equal(stepped.physics[0], env.engine.pack(data))


@pytest.mark.parametrize("portable", [False, True])
def test_an_unstable_simulation_marks_its_own_transition_and_says_nothing(portable, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if portable:
        monkeypatch.setattr(native, "available", lambda: False)
    env = envs.make("InvertedPendulum-v4", "mujoco")
    state, actions = first("InvertedPendulum-v4", 3)
    row = doubles(state.physics).copy()
    row[0, 1], row[1, 3] = np.nan, 1e200
    spoilt = state._replace(physics=row.view(np.uint32))
    stepped = jax.jit(jax.vmap(lambda s, a: env.step(s, a)))(spoilt, actions)
    for i in (0, 1):
        assert np.isnan(stepped.observation[i]).all() and np.isnan(stepped.reward[i])
        np.testing.assert_array_equal(stepped.physics[i], spoilt.physics[i])
    assert_finite((stepped.observation[2], stepped.reward[2]))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_simulations_are_clean_under_sanitizers(tmp_path, sanitizer):
    import mujoco as library

    task, bits = made("Hopper-v4")[0].task, library.mjtState
    model, xml = task.model, pathlib.Path(gymnasium.envs.mujoco.__path__[0]) / "assets" / "hopper.xml"
    numbers = [model.nq, model.nv, model.nu, bits.mjSTATE_QPOS, bits.mjSTATE_QVEL, bits.mjSTATE_CTRL]
    program, package = tmp_path / "simulation", ROOT / "rlx2_jax"
    rooms = [f"-I{package / room / 'cpp'}" for room in ("envs", "kernels")]
    build = ["g++", "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run([*build, *rooms, ROOT / "tests" / "native" / "simulation.cc", "-o", program, "-ldl"], check=True)
    called = [mujoco.shared_library(), xml, *map(int, (*numbers, library.mjtWarning.mjNWARNING))]
    done = subprocess.run([program, *map(str, called)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_what_has_terminated_stays_as_it_is_and_pays_nothing():
    step = made("Hopper-v4")[2]
    state, actions = first("Hopper-v4", 2)
    state = state._replace(terminated=jnp.array([True, False]), reward=jnp.ones(2))
    stepped = step(state, actions)
    over = jax.tree.map(lambda x: x[0], state._replace(reward=jnp.zeros(2)))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], stepped), over)
    assert (stepped.physics[1] != state.physics[1]).any()


def test_many_at_once_begin_anew_where_they_end():
    vector = envs.VectorEnvironment(envs.make("Hopper-v4", "mujoco"), 4, 100, pool=8)
    state = jax.jit(vector.renew)(vector.init(), KEY)

    def step(state, key):
        state, result = vector.step(state, jax.random.uniform(key, (4, 3), minval=-1.0, maxval=1.0), key)
        return state, (result, state)

    _, (result, after) = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(KEY, 200)))(state)
    assert result.finite.all() and result.terminated.any()
    assert not after.current.terminated.any()
    np.testing.assert_array_equal(after.steps == 0, result.terminated | result.truncated)


def test_without_the_library_python_does_the_same_and_says_so(monkeypatch, capfd):
    state, actions = first("Ant-v5", 2)
    expected = made("Ant-v5")[2](state, actions), made("Ant-v5")[1](jax.random.split(KEY, 2))
    monkeypatch.setattr(native, "available", lambda: False)
    env = gym.GymEnvironment("Ant-v5", "mujoco")
    assert capfd.readouterr().err == mujoco.SLOWER + "\n"
    keys = jax.random.split(KEY, 2)
    found = jax.jit(jax.vmap(env.step))(state, actions), jax.jit(jax.vmap(env.reset))(keys)
    chex.assert_trees_all_equal(found, expected)


@needs_native
def test_mujoco_does_not_time_its_parts_unless_a_person_does():
    """It reads a clock 114 times in a step of the hopper's."""
    import mujoco as theirs

    data = original("Hopper-v4").unwrapped.data
    model = data.model

    def timed():
        theirs.mj_resetData(model, data)
        theirs.mj_step(model, data)
        return sum(part.duration for part in data.timer)

    make = lambda: gym.GymEnvironment("Hopper-v4", "mujoco")
    make()
    assert timed() == 0
    ticks = itertools.count()
    theirs.set_mjcb_time(lambda: float(next(ticks)))
    make()
    assert timed() > 0
    theirs.set_mjcb_time(None)  # The clock of MuJoCo's package again.
    assert timed() > 0
    make()
    assert timed() == 0


def test_differentiating_is_refused_with_the_mend():
    env = made("Hopper-v4")[0]
    state = env.reset(KEY)
    with pytest.raises(ConfigError, match="backend=mjx"):
        jax.grad(lambda action: env.step(state, action).reward)(jnp.zeros(env.action_size))


@needs_native
def test_several_devices_and_processes_give_the_same_bits(tmp_path):
    """Two devices of a process step at once; programs name a task alike everywhere; nothing is printed or written."""
    command = (
        "import sys, json, jax, numpy as np\n"
        "from rlx2_jax import envs\n"
        "assert not {'gymnasium', 'mujoco'} & set(sys.modules)\n"
        "env = envs.make('HalfCheetah-v4', 'mujoco')\n"
        "key = jax.random.key(0)\n"
        "actions = jax.random.uniform(key, (50, 8, env.action_size), minval=-1.0, maxval=1.0)\n"
        "def play(keys):\n"
        "    step = lambda s, a: (jax.vmap(env.step)(s, a), None)\n"
        "    return jax.lax.scan(step, jax.vmap(env.reset)(keys), actions)[0].physics\n"
        "keys = jax.random.split(key, 8)\n"
        "placed = [jax.device_put(keys, device) for device in jax.devices()]\n"
        "ends = [jax.jit(play)(keys) for keys in placed * 3]\n"
        "assert len(placed) == 2 and all((np.asarray(end) == np.asarray(ends[0])).all() for end in ends)\n"
        "json.dump([env.engine._key, np.asarray(ends[0]).tolist()], open(sys.argv[1], 'w'))\n"
    )
    variables = {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    out, room = tmp_path / "ends.json", tmp_path / "room"
    room.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", command, str(out)],
        cwd=room,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(pathlib.Path(room).iterdir()) == []
    key, ends = json.loads(out.read_text())
    env, reset, step = made("HalfCheetah-v4")
    actions = jax.random.uniform(KEY, (50, 8, env.action_size), minval=-1.0, maxval=1.0)
    state = reset(jax.random.split(KEY, 8))
    for action in actions:
        state = step(state, action)
    assert key == env.engine._key
    np.testing.assert_array_equal(ends, state.physics)


@needs_native
def test_what_cannot_be_is_refused_with_the_mend(monkeypatch, tmp_path):
    for name in ("Hopper-v3", "Hopper-v9", "Pusher-v5"):
        with pytest.raises(ConfigError, match="unknown env"):
            envs.make(name)
    with pytest.raises(ConfigError, match="valid: mujoco, mjx"):
        envs.make("Hopper-v4", "spring")
    with pytest.raises(ConfigError, match=r"mjx cannot simulate Humanoid-v4 .*backend=mujoco"):
        envs.make("Humanoid-v4", "mjx")
    task = made("Hopper-v4")[0].task
    import mujoco as library

    with monkeypatch.context() as patch:
        patch.setattr(library, "__path__", [str(tmp_path)])
        with pytest.raises(ConfigError, match="pip install 'mujoco>=4'"):
            mujoco.Engine("Hopper-v4", task)
    monkeypatch.setitem(sys.modules, "gymnasium.envs", None)
    with pytest.raises(ConfigError, match="pip install"):
        gym_tasks.load.__wrapped__("Hopper-v4")


@needs_native
def test_a_program_whose_task_was_not_made_in_its_process_says_so(monkeypatch):
    env = made("Hopper-v4")[0]
    monkeypatch.setattr(env.engine, "_key", "elsewhere")
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="no task elsewhere in this process"):
        jax.block_until_ready(jax.jit(lambda key: env.reset(key))(KEY))


def test_the_default_engine_is_the_devices_own():
    assert envs.make("Hopper-v4") is envs.make("Hopper-v4", gym.default_engine())
    assert isinstance(envs.make("Hopper-v4").engine, mujoco.Engine)


@pytest.mark.parametrize("compute", ["masked", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, compute):
    config = small(env="Hopper-v4", compute=compute, checkpoint_every=400)
    whole = train(config, tmp_path / "whole", show_progress=False)
    stop = lambda rows: os.kill(os.getpid(), signal.SIGTERM) if len(rows) == 1 else None
    part = train(config, tmp_path / "part", show_progress=False, on_report=stop)
    assert (part.finished, part.summary["env_steps"]) == (False, 400)
    resumed = train(config, tmp_path / "part", show_progress=False, resume=True)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows)
    chex.assert_trees_all_equal(resumed.policy.params, whole.policy.params)


@pytest.mark.slow
def test_runs_of_a_sweep_are_those_alone_in_one_program_and_as_processes(tmp_path):
    """Masks and counts in one program, where products are summed in another order; all bits as processes."""
    configs = product(small(env="Hopper-v4", eval_episodes=2), seeds=[1, 2])
    alone = {config.seed: train(config, show_progress=False) for config in configs}
    for parallel in ("shard_map", "processes"):
        found = sweep(configs, tmp_path / parallel, parallel=parallel, show_progress=False)
        assert found.finished
        for run in found.plan.runs:
            policy, expected = policies.load(tmp_path / parallel / "runs" / run.name), alone[run.config.seed].policy
            for ours, theirs in zip(*map(jax.tree.leaves, (policy.params, expected.params)), strict=True):
                np.testing.assert_array_equal(ours != 0, theirs != 0)
                if parallel == "processes":
                    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "length"), [("InvertedPendulum-v5", 8, 60), ("HalfCheetah-v4", 4, 60), ("Ant-v5", 3, 25)]
)
def test_mjx_simulates_the_same_task(name, steps, length):
    """In single precision: one episode to 1e-3 over the first steps, before contacts make any difference grow.

    Many in distribution: the returns of a policy of random weights are told apart no better than by chance.
    """
    engines = [envs.make(name, backend) for backend in ("mujoco", "mjx")]
    keys = jnp.concatenate([KEY[None], jax.random.split(KEY, 39)])
    first = [jax.jit(jax.vmap(env.reset))(keys) for env in engines]
    step = [jax.jit(jax.vmap(env.step)) for env in engines]
    states = first
    np.testing.assert_allclose(*(state.observation for state in states), atol=1e-6)
    for key in jax.random.split(KEY, steps):
        action = jax.random.uniform(key, (engines[0].action_size,), minval=-1.0, maxval=1.0)
        actions = jnp.broadcast_to(action, (40, *action.shape))
        states = [one(state, actions) for one, state in zip(step, states, strict=True)]
        for field in ("observation", "reward", "terminated"):
            np.testing.assert_allclose(*(getattr(state, field)[0] for state in states), atol=1e-3)
    states = first
    weights = 0.3 * jax.random.normal(KEY, (engines[0].observation_size, engines[0].action_size))
    returns = np.zeros((2, 40))
    for _ in range(length):
        actions = [jnp.tanh(state.observation @ weights) for state in states]
        states = [one(state, action) for one, state, action in zip(step, states, actions, strict=True)]
        returns += [state.reward for state in states]
    assert np.std(returns, axis=1).min() > 0
    assert scipy.stats.ks_2samp(*returns).pvalue > 0.1
    over = states[1]._replace(terminated=jnp.ones(40, bool))
    chex.assert_trees_all_equal(step[1](over, actions[1]), over._replace(reward=jnp.zeros(40)))
    lost = jax.tree.map(lambda x: x * jnp.nan, states[1].physics)
    after = step[1](states[1]._replace(physics=lost, terminated=jnp.zeros(40, bool)), actions[1])
    assert np.isnan(after.reward).all()
