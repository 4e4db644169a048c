"""What masks cost: updates per second of the masked program and of the same update written dense, in one process.

  python experiments/benchmark.py
  python experiments/benchmark.py --rows=td3/hopper,sac/ant --seconds=20 --output=benchmark.json

The modes take turns, and medians over the turns are compared, so that a busy machine slows both alike. Replay is filled
with random transitions; an update is everything from sampling a batch to the Polyak step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from rlx2_jax import files, memory, presets
from rlx2_jax import flags as launcher
from rlx2_jax.agents import AgentState
from rlx2_jax.errors import ConfigError
from rlx2_jax.training.program import Program, make_program

MODES = ("dense", "masked")

ROWS = flags.DEFINE_list("rows", ["td3/halfcheetah", "td3/hopper", "sac/hopper"], "rows of Table 2")
SECONDS = flags.DEFINE_float("seconds", 20.0, "time to spend per row")
WIDTH = flags.DEFINE_integer("width", 256, "hidden width")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write")

TRANSITIONS = 100_000
"""In the replay that updates sample from."""


def main(argv: Sequence[str]) -> int | None:
    """Measure and print."""
    del argv
    if unknown := [row for row in ROWS.value if row not in presets.ROWS]:
        raise ConfigError(f"unknown rows {unknown}; valid: {', '.join(presets.ROWS)}.")
    print(f"{jax.devices()[0].device_kind}, width {WIDTH.value}, batch 256, jax {jax.__version__}")
    print(f"{'row':<16} {'masked / dense time':>20} {'dense updates/s':>16} {'masked updates/s':>17} {'n':>4}")
    results = []
    for row in ROWS.value:
        measured = measure(row, WIDTH.value, SECONDS.value)
        results.extend(measured)
        dense, masked = (m["updates_per_second"] for m in measured)
        print(f"{row:<16} {dense / masked:>20.3f} {dense:>16.0f} {masked:>17.0f} {measured[0]['n']:>4}")
    if OUTPUT.value:
        files.write_json(Path(OUTPUT.value), {"rows": results, "device": jax.devices()[0].device_kind})
    return 0


def measure(row: str, width: int, seconds: float) -> list[dict[str, Any]]:
    """Both modes of one row of Table 2, taking turns for the given time; one result per mode."""
    config = presets.make_config((row,), {"hidden": (width, width), "buffer_max": TRANSITIONS})
    program = make_program(config)
    sweeps: dict[str, Callable[[AgentState], AgentState]] = {}
    states: dict[str, AgentState] = {}
    for mode in MODES:
        states[mode], sweeps[mode] = _prepare(program, masked=mode == "masked")
        states[mode] = jax.block_until_ready(sweeps[mode](states[mode]))
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for mode in MODES:
            began = time.perf_counter()
            states[mode] = jax.block_until_ready(sweeps[mode](states[mode]))
            times[mode].append(time.perf_counter() - began)
    updates = program.config.updates_per_iteration
    return [
        {
            "agent": config.agent,
            "env": config.env,
            "width": width,
            "mode": mode,
            "updates_per_second": updates / statistics.median(times[mode]),
            "state_bytes": memory.tree_bytes(states[mode]),
            "n": len(times[mode]),
        }
        for mode in MODES
    ]


def _prepare(program: Program, *, masked: bool) -> tuple[AgentState, Callable[[AgentState], AgentState]]:
    """A fresh agent, and its compiled updates of one iteration on random experience, windows in use."""
    state = jax.jit(program.init)(jax.random.PRNGKey(0), program.hparams)
    key = jax.random.PRNGKey(1)
    replay = state.replay.replace(
        observation=jax.random.normal(key, state.replay.observation.shape),
        action=jax.random.uniform(key, state.replay.action.shape, minval=-1),
        reward=jax.random.normal(key, state.replay.reward.shape),
        head=jnp.asarray(state.replay.reward.shape[0], jnp.int32),
    )
    agent = state.agent
    if not masked:
        agent = agent.replace(actor=agent.actor.replace(mask=None), critic=agent.critic.replace(mask=None))

    def updates(agent: AgentState) -> AgentState:
        return program.learn(agent, replay, key, program.hparams, jnp.asarray(True))[0]

    return agent, jax.jit(updates, donate_argnums=0)


if __name__ == "__main__":
    launcher.run(main)
