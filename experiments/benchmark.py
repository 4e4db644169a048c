"""What sparsity costs and brings: updates per second and bytes of training state, by mode, in one process.

  python experiments/benchmark.py                                        every row of Table 2 at three widths: an hour
  python experiments/benchmark.py --rows=td3/hopper --modes=masked,packed --seconds=20

Modes of one row take turns, and medians over the turns are compared, so that a busy machine slows all alike. Replay is
filled with random transitions; an update is everything from sampling a batch to the Polyak step.

  dense    without masks, as a program that knows of no sparsity
  tiny     dense and narrow: its critics have as many weights as the sparse ones have links, its actor is as narrow
  masked   dense products of matrices that hold zeros
  packed   products over links alone

The floor of a mode is the time its update cannot do without: the multiply-adds of its products over the rate of the
machine's best dense product, plus the bytes of its training state, read and written once, over the bandwidth of its
caches; both rates are measured in this process.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from rlx2_jax import envs
from rlx2_jax.analysis import accounting, benchmarks
from rlx2_jax.config import Config, command_line, presets
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files, provenance
from rlx2_jax.networks import SparseNetwork, structure
from rlx2_jax.runtime import memory
from rlx2_jax.training import compute
from rlx2_jax.training.programs import Program, make_program
from rlx2_jax.viz import curves, speeds

MODES = ("dense", "tiny", "masked", "packed")

ROWS = flags.DEFINE_list("rows", list(presets.ROWS), "rows of Table 2")
WIDTHS = flags.DEFINE_list("widths", ["256", "512", "1024"], "hidden widths")
SELECTED = flags.DEFINE_list("modes", list(MODES), "modes: " + ", ".join(MODES))
SECONDS = flags.DEFINE_float("seconds", 20.0, "time to spend per row and width, compilation apart")
OUTPUT = command_line.define_path(
    "output", "benchmark.json", "JSON file to write; the picture stands beside it as .png"
)

LATENCY_CALLS = 300

TRANSITIONS = 100_000
"""Least size of the replay that updates sample from; its ring has room for the next power of two."""

RATE_SIZE = 1024
"""Side of the matrices whose product shows the machine's rate of multiply-adds."""


class Machine(NamedTuple):
    """What this machine does at best, measured here."""

    multiply_adds: float
    """Multiply-adds per second."""
    bandwidth: float
    """Bytes read and written per second, in arrays of a training state's size."""


def main(argv: Sequence[str]) -> int | None:
    """Measure, print, write."""
    del argv
    _check("rows", ROWS.value, tuple(presets.ROWS))
    _check("modes", SELECTED.value, MODES)
    if not WIDTHS.value or not all(width.isdecimal() and int(width) > 0 for width in WIDTHS.value):
        raise ConfigError(f"widths {','.join(WIDTHS.value)}: name whole numbers of 1 or more.")
    output: Path = OUTPUT.value
    command_line.check_output(output, OUTPUT.name, (".json",))
    output.parent.mkdir(parents=True, exist_ok=True)
    device = provenance.device()
    machine = measure_machine()
    print(f"{device}, batch 256, jax {jax.__version__}; ratios and medians of updates taking turns")
    rate, bandwidth = machine.multiply_adds / 1e9, machine.bandwidth / 1e9
    print(f"best dense product {rate:.1f} G multiply-adds/s, caches {bandwidth:.1f} GB/s")
    print(
        f"{'row':<16} {'width':>5} {'mode':<7} {'x masked':>8} {'updates/s':>10} {'us (quartiles)':>21} "
        f"{'floor us':>9} {'x floor':>8} {'state':>9} {'x dense':>8} {'batch-1 us':>10} {'n':>5}"
    )
    results: list[dict[str, Any]] = []
    for width in map(int, WIDTHS.value):
        for row in ROWS.value:
            measured = measure(row, width, SELECTED.value, SECONDS.value, machine)
            results.extend(measured)
            for line in measured:
                print(_line(row, line), flush=True)
            files.write_json(
                output,
                provenance.about() | {"rows": results, "machine": machine._asdict()},
            )
    path = output.with_suffix(".png")
    curves.save(speeds.draw(results), path)
    print(f"wrote {output} and {path}")
    return 0


def measure(row: str, width: int, modes: Sequence[str], seconds: float, machine: Machine) -> list[dict[str, Any]]:
    """Modes of one row of Table 2, taking turns for the given time; one result per mode."""
    programs = {mode: make_program(mode_config(row, width, mode)) for mode in modes}
    contenders = {mode: compute.updates(program, dense=mode in ("dense", "tiny")) for mode, program in programs.items()}
    actors = {mode: jax.tree.map(jnp.copy, agent.actor) for mode, (agent, _) in contenders.items()}
    sizes = {mode: memory.tree_bytes(agent) for mode, (agent, _) in contenders.items()}
    dense_bytes = _dense_bytes(row, width)
    latency = policy_latency(programs, actors)
    times = compute.race(contenders, seconds)
    results: list[dict[str, Any]] = []
    for mode, program in programs.items():
        config = program.config
        per_update = statistics.median(times[mode]) / config.updates_per_iteration
        results.append(
            {
                "agent": config.agent,
                "env": config.env,
                "width": width,
                "mode": mode,
                "updates_per_second": 1 / per_update,
                "floor_updates_per_second": 1 / floor_seconds(program, mode, sizes[mode], machine),
                "state_bytes": sizes[mode],
                "state_over_dense": sizes[mode] / dense_bytes,
                "policy_latency_seconds": latency[mode],
                "seconds_quartiles": benchmarks.quartiles([t / config.updates_per_iteration for t in times[mode]]),
                "n": len(times[mode]),
            }
        )
    masked = next((result["updates_per_second"] for result in results if result["mode"] == "masked"), None)
    for result in results:
        result["speed_over_masked"] = None if masked is None else result["updates_per_second"] / masked
    return results


def mode_config(row: str, width: int, mode: str) -> Config:
    """The configuration that a mode runs."""
    config = presets.make_config((row,), {"hidden": (width, width), "buffer_max": TRANSITIONS})
    if mode == "tiny":
        # A program of the narrow shape itself, where the method `tiny` lies in the full shape; as narrow as the critic.
        env = envs.make(config.env, config.backend)
        sizes = (env.observation_size + env.action_size, *config.hidden, 1)
        narrow = structure.tiny_width(sizes, config.critic_sparsity)
        return dataclasses.replace(config, hidden=(narrow, narrow), method="dense")
    return dataclasses.replace(config, compute="packed" if mode == "packed" else "masked")


def _dense_bytes(row: str, width: int) -> int:
    program = make_program(mode_config(row, width, "dense"))
    agent = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams).agent
    return memory.tree_bytes([network.replace(mask=None) for network in (agent.actor, agent.critic)])


def floor_seconds(program: Program, mode: str, state_bytes: int, machine: Machine) -> float:
    """The least time of one update; see the module's docstring."""
    config = program.config
    if mode in ("dense", "masked"):
        config = dataclasses.replace(config, method="dense", topology="fixed")
    account = accounting.account(config, program.env.observation_size, program.env.action_size)
    multiply_adds = account.flops_train_exact / 2 * config.batch_size
    return multiply_adds / machine.multiply_adds + 2 * state_bytes / machine.bandwidth


def _line(row: str, result: dict[str, Any]) -> str:
    speed = result["updates_per_second"]
    quartiles = "({:.0f}-{:.0f})".format(*(1e6 * q for q in result["seconds_quartiles"]))
    over = "-" if result["speed_over_masked"] is None else f"{result['speed_over_masked']:.2f}"
    return (
        f"{row:<16} {result['width']:>5} {result['mode']:<7} {over:>8} {speed:>10.0f} "
        f"{1e6 / speed:>7.0f} {quartiles:>13} {1e6 / result['floor_updates_per_second']:>9.0f} "
        f"{result['floor_updates_per_second'] / speed:>8.2f} {memory.format_bytes(result['state_bytes']):>9} "
        f"{result['state_over_dense']:>8.3f} {1e6 * result['policy_latency_seconds']:>10.0f} {result['n']:>5}"
    )


def policy_latency(programs: dict[str, Program], actors: dict[str, SparseNetwork]) -> dict[str, float]:
    """Median seconds of one deterministic action for one observation, from the call until the result is there."""
    calls: dict[str, Callable[[], Any]] = {}
    for mode, program in programs.items():
        act, observation = jax.jit(program.agent.mode), jnp.zeros((1, program.env.observation_size))
        calls[mode] = functools.partial(_wait, act, actors[mode], observation)
        calls[mode]()
    times: dict[str, list[float]] = {mode: [] for mode in programs}
    for _ in range(LATENCY_CALLS):
        for mode, call in calls.items():
            times[mode].append(_timed(call))
    return {mode: statistics.median(values) for mode, values in times.items()}


def measure_machine() -> Machine:
    """Best rates seen of a dense product and of a pass over an array in cache."""
    a = jnp.ones((RATE_SIZE, RATE_SIZE))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    rate = RATE_SIZE**3 / min(_timed(functools.partial(_wait, product, a)) for _ in range(50))
    x, passes = jnp.ones(64 * 1024), 1000
    sweep = jax.jit(lambda x: jax.lax.fori_loop(0, passes, lambda i, x: x * 0.999 + i, x))
    jax.block_until_ready(sweep(x))
    bandwidth = 2 * x.nbytes * passes / min(_timed(functools.partial(_wait, sweep, x)) for _ in range(20))
    return Machine(rate, bandwidth)


def _wait(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _check(flag: str, given: Sequence[str], valid: Sequence[str]) -> None:
    if not given or any(name not in valid for name in given):
        raise ConfigError(f"{flag}={','.join(given)}: name some of {', '.join(valid)}.")


if __name__ == "__main__":
    command_line.run(main)
