"""How fast environments are: steps per second of gymnasium's MuJoCo tasks inside a compiled program, and of others.

python experiments/benchmark_env.py                                        Hopper, HalfCheetah, Walker2d, Ant: a minute
python experiments/benchmark_env.py --tasks=Hopper-v4 --against=batch,brax --cold

  rlx2     ours, backend mujoco: a scan of steps with resets, random actions drawn inside
  batch    a bare Python loop over `mujoco.batch.Batch`, which makes the same simulations: of one model, from one state,
           with equal actions, threads and resets; it neither observes, nor pays, nor draws
  brax     Brax's task of that name, generalized, scanned as ours

Blocks of steps take turns, in every other round the other way about, and what is compared is what a block took with
what ours took in the same round, so that a busy machine slows all alike. Each block of a contestant is the same, begun
after episodes have come to differ. Initial states are made beforehand, as in training.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from rlx2_jax import envs
from rlx2_jax.analysis import benchmarks
from rlx2_jax.config import command_line
from rlx2_jax.envs import brax, gym, gym_tasks
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files, provenance
from rlx2_jax.runtime import limits
from rlx2_jax.viz import curves, speeds

OURS = "rlx2"
OTHERS = ("batch", "brax")

TASKS = flags.DEFINE_list("tasks", ["Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Ant-v4"], "tasks of gymnasium")
AGAINST = flags.DEFINE_list("against", ["batch"], "whom ours is compared with: " + ", ".join(OTHERS))
NUM_ENVS = flags.DEFINE_integer("num_envs", 20, "environments side by side")
STEPS = flags.DEFINE_integer("steps", 200, "steps of each of them in a block")
SECONDS = flags.DEFINE_float("seconds", 10.0, "time to spend per task, compilation apart")
COLD = flags.DEFINE_bool("cold", False, "measure the start of a process, too: imports, and compilation without a cache")
OUTPUT = command_line.define_path(
    "output", "benchmark_env.json", "JSON file to write; the picture stands beside it as .png"
)
CHILD = flags.DEFINE_string("child", None, "contestant of a process that this one starts; not for people")

MOST = 100_000
"""Environments, and steps of a block."""

EPISODE, POOL = 1000, 64
"""Steps at most, and initial states at least, as in training."""


FIELDS = ("qpos", "qvel", "qacc_warmstart")
"""What a simulation goes on from."""

KEY = 0

Block = Callable[[], Any]
"""Makes a block of steps in all environments, and returns when they are done."""


def main(argv: Sequence[str]) -> int | None:
    """Measure, print, write."""
    del argv
    _check_flags()
    if CHILD.value is not None:
        return start_cold(TASKS.value[0], CHILD.value)
    path: Path = OUTPUT.value
    command_line.check_output(path, OUTPUT.name, (".json",))
    path.parent.mkdir(parents=True, exist_ok=True)
    threads, before = len(limits.cores()), os.getloadavg()[0]
    print(f"{provenance.device()}, jax {jax.__version__}; {NUM_ENVS.value} environments, blocks of {STEPS.value} steps")
    print(
        f"{'task':<22} {'contestant':<10} {'steps/s (quartiles)':>30} {'ours over it (quartiles)':>26} {'n':>5}"
        + (f" {'import s':>9} {'compile s':>9}" if COLD.value else "")
    )
    results: list[dict[str, Any]] = []
    for task in TASKS.value:
        measured = measure(task)
        results.extend(measured)
        for line in measured:
            print(_line(line), flush=True)
    load = {"before": before, "after": os.getloadavg()[0]}
    settings = {"num_envs": NUM_ENVS.value, "steps": STEPS.value, "threads": threads, "load": load}
    files.write_json(path, provenance.about() | settings | {"results": results})
    curves.save(speeds.draw_env(results, provenance.device()), path.with_suffix(".png"))
    print(f"load of the machine {load['before']:.1f} before and {load['after']:.1f} after, this process included then")
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return 0


def measure(task: str) -> list[dict[str, Any]]:
    """Contestants of one task, taking turns; one result each."""
    times = benchmarks.in_turns(contestants(task, AGAINST.value), SECONDS.value)
    made = NUM_ENVS.value * STEPS.value
    results = []
    for name, seconds in times.items():
        rates = [made / second for second in seconds]
        ratios = [theirs / ours for theirs, ours in zip(seconds, times[OURS], strict=True)]
        result: dict[str, Any] = {
            "task": task,
            "contestant": name,
            "steps_per_second": statistics.median(rates),
            "steps_per_second_quartiles": benchmarks.quartiles(rates),
            "ours_over_it": statistics.median(ratios),
            "ours_over_it_quartiles": benchmarks.quartiles(ratios),
            "n": len(seconds),
        }
        results.append(result | (cold(task, name) if COLD.value else {}))
    return results


def contestants(task: str, others: Sequence[str]) -> dict[str, Block]:
    """Blocks by contestant, ours first, each made once already."""
    env = gym.load(task, "mujoco")
    vector = _many(env)
    start = _begun(vector)
    blocks: dict[str, Block] = {OURS: _scanned(vector, start)}
    if "batch" in others:
        blocks["batch"] = Loop(env, vector, start)
    if "brax" in others:
        vector = _many(brax.load(brax_name(task), "generalized"))
        blocks["brax"] = _scanned(vector, _begun(vector))
    for block in blocks.values():
        block()
    return blocks


def _many(env: envs.Environment) -> envs.VectorEnvironment:
    return envs.VectorEnvironment(env, NUM_ENVS.value, EPISODE, max(POOL, NUM_ENVS.value))


def _begun(vector: envs.VectorEnvironment) -> envs.VectorState:
    """Environments that have gone through a block, and no longer stand at the beginnings of their episodes."""
    state = jax.jit(vector.renew)(vector.init(), jax.random.PRNGKey(KEY))
    return jax.jit(lambda state: steps(vector, state)[0])(state)


def _scanned(vector: envs.VectorEnvironment, start: envs.VectorState) -> Block:
    program = jax.jit(lambda state: steps(vector, state)[0])
    return lambda: jax.block_until_ready(program(start))


def steps(vector: envs.VectorEnvironment, state: envs.VectorState) -> tuple[envs.VectorState, tuple[jax.Array, Any]]:
    """A block of steps with random actions; with each, its actions `[E, A]` and the environments after it."""

    def step(state: envs.VectorState, key: jax.Array) -> tuple[envs.VectorState, tuple[jax.Array, Any]]:
        for_action, for_reset = jax.random.split(key)
        action = jax.random.uniform(for_action, (vector.num_envs, vector.env.action_size), minval=-1.0, maxval=1.0)
        state, _ = vector.step(state, action, for_reset)
        return state, (action, (state.steps, state.current.physics))

    return jax.lax.scan(step, state, jax.random.split(jax.random.PRNGKey(KEY), STEPS.value))


class Loop:
    """A block of ours made again by a Python loop over `mujoco.batch.Batch`."""

    def __init__(self, env: gym.GymEnvironment, vector: envs.VectorEnvironment, start: envs.VectorState):
        """Record what a block of ours does."""
        from mujoco import batch

        model = env.task.model
        self.batch = batch.Batch(model, vector.num_envs, len(limits.cores()))
        self._frame_skip = env.task.frame_skip
        record = jax.jit(lambda state: steps(vector, state)[1])
        actions, (ages, physics) = jax.device_get(record(start))
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        self._controls = (low + high) / 2 + actions * ((high - low) / 2)
        self._start = np.arange(vector.num_envs), fields(model, np.asarray(start.current.physics))
        ended = [np.flatnonzero(age == 0) for age in ages]
        self._fresh = [(ids, fields(model, now[ids])) for ids, now in zip(ended, physics, strict=True)]

    def __call__(self) -> None:
        """Make the block."""
        self._write(*self._start)
        for control, fresh in zip(self._controls, self._fresh, strict=True):
            self.batch.ctrl[:] = control
            self.batch.step(nstep=self._frame_skip)
            if fresh[0].size:
                self._write(*fresh)

    def _write(self, ids: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        for name, rows in values.items():
            getattr(self.batch, name)[ids] = rows


def fields(model: Any, physics: np.ndarray) -> dict[str, np.ndarray]:
    """What our simulations `[rows, words]` go on from: MuJoCo's fields `[rows, ...]` by name."""
    import mujoco

    data, found = mujoco.MjData(model), []
    for row in np.ascontiguousarray(physics).view(np.float64):
        mujoco.mj_setState(model, data, row[:-1], mujoco.mjtState.mjSTATE_INTEGRATION)
        found.append([getattr(data, name).copy() for name in FIELDS])
    return {name: np.array([row[i] for row in found]) for i, name in enumerate(FIELDS)}


def cold(task: str, contestant: str) -> dict[str, float]:
    """Seconds that a new process takes for its imports and models, and from then on until its first step is made."""
    command = [sys.executable, *sys.argv, f"--tasks={task}", f"--child={contestant}"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    ) as process:
        assert process.stdout is not None
        times = []
        for said in ("made", "stepped"):
            if process.stdout.readline().strip() != said:
                raise ConfigError(f"a process that was to start {contestant} on {task} ended early; see above.")
            times.append(time.perf_counter())
    made, stepped = times
    return {"import_seconds": made - began, "compile_seconds": stepped - made}


def start_cold(task: str, contestant: str) -> int:
    """A process that was started to be timed: make the task, say so, make a step, say so."""
    step: Block
    if contestant == "batch":
        from mujoco import batch

        loaded = gym_tasks.load(task)
        simulations = batch.Batch(loaded.model, NUM_ENVS.value, len(limits.cores()))
        step = lambda: simulations.step(nstep=loaded.frame_skip)
    else:
        vector = _many(gym.load(task, "mujoco") if contestant == OURS else brax.load(brax_name(task), "generalized"))
        key = jax.random.PRNGKey(KEY)
        action = jnp.zeros((vector.num_envs, vector.env.action_size))
        begin, go_on = jax.jit(vector.renew), jax.jit(vector.step)
        step = lambda: jax.block_until_ready(go_on(begin(vector.init(), key), action, key))
    print("made", flush=True)
    step()
    print("stepped", flush=True)
    return 0


def brax_name(task: str) -> str:
    """Brax's name of a task of gymnasium.

    Raises:
      ConfigError: it has no such task.
    """
    robot = task.partition("-")[0].lower()
    for name in brax.TASKS:
        if name.replace("_", "") == robot:
            return name
    raise ConfigError(f"Brax has no {task}; leave it out of --tasks, or brax out of --against.")


def _line(result: Mapping[str, Any]) -> str:
    quartiles = "({:,.0f}-{:,.0f})".format(*result["steps_per_second_quartiles"])
    over = "{:.2f}-{:.2f}".format(*result["ours_over_it_quartiles"])
    line = (
        f"{result['task']:<22} {result['contestant']:<10} {result['steps_per_second']:>11,.0f} {quartiles:>18} "
        f"{result['ours_over_it']:>11.2f} {f'({over})':>14} {result['n']:>5}"
    )
    if "compile_seconds" in result:
        line += f" {result['import_seconds']:>9.1f} {result['compile_seconds']:>9.1f}"
    return line


def _check_flags() -> None:
    for flag, valid in ((TASKS, tuple(gym_tasks.TASKS)), (AGAINST, OTHERS)):
        if unknown := [name for name in flag.value if name not in valid]:
            raise ConfigError(f"unknown {flag.name} {unknown}; valid: {', '.join(valid)}.")
    if not TASKS.value:
        raise ConfigError("nothing to measure; name tasks with --tasks.")
    for number in (NUM_ENVS, STEPS):
        if not 1 <= number.value <= MOST:
            raise ConfigError(f"{number.name}={number.value}: use 1 to {MOST:,}.")
    if "brax" in AGAINST.value:
        for task in TASKS.value:
            brax_name(task)


if __name__ == "__main__":
    command_line.run(main)
