"""How much a sweep gains by being one program: aggregate updates per second of many runs at once.

python experiments/benchmark_sweep.py --env=probe/action --runs=1,8,32
python experiments/benchmark_sweep.py --preset=td3/hopper --runs=1,8,32,128,512

Measures whole training (environment steps and updates, no evaluation) after the warm-up:

  together         N runs as one program, as `experiments/sweep.py` lays them out over the devices of this machine
  one by one       the same runs one after another, each compiled alone
  as processes     the same runs in parallel processes, one per core of this machine's CPU, masked and packed

A setting of `Config` is a flag, as for `experiments/train.py`; buffer, warm-up and chunk are short.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from rlx2_jax.config import Config, RunConfig, command_line, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files, provenance
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.runtime import memory, native
from rlx2_jax.sweeps import layout, plans, workers
from rlx2_jax.training.programs import make_program
from rlx2_jax.viz import curves, speeds

RUNS = flags.DEFINE_list("runs", ["1", "8", "32"], "numbers of runs at once")
SECONDS = flags.DEFINE_float("seconds", 5.0, "time to spend on each measurement, compilation apart")
PROCESSES = flags.DEFINE_bool("processes", True, "measure parallel processes too")
OUTPUT = command_line.define_path("output", "benchmark_sweep.json", "JSON file to write; the picture stands beside it")
CHILD = flags.DEFINE_list("child", None, "cores of a process that this one starts; not for people")
set_up_compilation = command_line.define_compilation_flags()


class Rate(NamedTuple):
    """Updates per second of all runs together."""

    median: float
    low: float
    """At the slower quartile of the calls."""
    high: float
    """At the faster one."""
    calls: int

    def __str__(self) -> str:
        return f"{self.median:>12,.0f} updates/s (quartiles {self.low:,.0f}, {self.high:,.0f}; {self.calls} calls)"


KNEE = 0.8
"""The knee is the fewest runs that reach this share of the best rate."""


def main(argv: Sequence[str]) -> int | None:
    """Measure, print, write."""
    del argv
    if not RUNS.value or not all(count.isdecimal() and int(count) > 0 for count in RUNS.value):
        raise ConfigError(f"runs={','.join(RUNS.value)}: name whole numbers of 1 or more.")
    config = shortened(command_line.read_config())
    set_up_compilation()
    if CHILD.value is not None:
        return child(config, [int(core) for core in CHILD.value])
    path: Path = OUTPUT.value
    command_line.check_output(path, OUTPUT.name, (".json",))
    path.parent.mkdir(parents=True, exist_ok=True)
    device = provenance.device()
    print(f"{config.method} {config.agent} on {config.env}, hidden {config.hidden}, batch {config.batch_size}")
    print(f"{device}, jax {jax.__version__}")
    alone = rate(*one_run(dataclasses.replace(config, compute="masked")), SECONDS.value)
    print(f"one by one           {alone}")
    processes: dict[str, Rate] = {}
    if PROCESSES.value:
        for compute in ("masked", "packed") if native.load() is not None else ("masked",):
            processes[compute] = in_processes(compute)
            ratio = processes[compute].median / alone.median
            print(f"as processes, {compute} {processes[compute]}, {ratio:.2f} x one by one")
    results = [together(config, int(count), alone.median) for count in RUNS.value]
    best = max(result["updates_per_second"] for result in results)
    knee = min(r["runs"] for r in results if r["updates_per_second"] >= KNEE * best)
    print(f"knee at {knee} runs: {KNEE:.0%} of the best rate, {best:,.0f} updates/s")
    about = provenance.about() | {"config": config.to_dict()}
    others = {"one_by_one": alone._asdict(), "processes": {name: each._asdict() for name, each in processes.items()}}
    found = others | {"together": results, "knee": knee}
    files.write_json(path, about | found)
    title = f"{config.agent} on {config.env}: {device}"
    medians = {name: each.median for name, each in processes.items()}
    curves.save(speeds.draw_sweep(results, alone.median, medians, title), path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png')}")
    return 0


def shortened(config: Config) -> RunConfig:
    """A run in chunks of ten iterations, past its warm-up after two of them, too early for any event."""
    steps = 10 * config.steps_per_iteration
    short: dict[str, Any] = {"total_steps": 1000 * steps, "warmup_steps": 2 * steps, "buffer_max": 100_000}
    short |= {"buffer_min": None, "chunk_steps": steps, "eval_every": steps, "schedule_scale": 1.0}
    return resolve(dataclasses.replace(config, **short))


def one_run(config: RunConfig) -> tuple[Callable[[], Any], int]:
    """A call that trains one run for a chunk, and the updates in it."""
    program = make_program(config)
    init, renew = jax.jit(program.init), jax.jit(program.renew, donate_argnums=0)
    chunk = jax.jit(program.chunk, donate_argnums=0)
    held = [renew(init(jax.random.PRNGKey(config.seed), program.hparams))]

    def step() -> Any:
        held[0] = chunk(held[0], program.hparams, program.schedule)
        return held[0].progress

    return step, config.iterations_per_chunk * config.updates_per_iteration


def together(config: RunConfig, count: int, alone: float) -> dict[str, Any]:
    """Many runs as one program."""
    over = layout.Layout(jax.devices())
    configs = plans.product(config, seeds=range(count))
    batch = plans.lay_out(configs, devices=over.size).batches[0]
    program, schedule = plans.build(configs), plans.common_schedule(configs)
    compiled = layout.compile_batch(over, program, schedule, batch.rows)
    filled = [configs[min(row, count - 1)] for row in range(batch.rows)]
    sizes = program.env.observation_size, program.env.action_size
    hparams = over.put(jax.tree.map(lambda *x: np.stack(x), *[make_hparams(c, *sizes) for c in filled]))
    times = over.put(schedule, None)
    keys = over.put(np.stack([jax.random.PRNGKey(c.seed) for c in filled]))
    held = [compiled.renew(compiled.init(keys, hparams))]

    def step() -> Any:
        held[0] = compiled.chunk(held[0], hparams, times)
        return held[0].progress

    speed = rate(step, count * config.iterations_per_chunk * config.updates_per_iteration, SECONDS.value)
    stats = jax.local_devices()[0].memory_stats() or {}
    per_device = batch.rows // over.size
    peak = stats["peak_bytes_in_use"] / per_device if "peak_bytes_in_use" in stats else None
    result: dict[str, Any] = {
        "runs": count,
        "updates_per_second": speed.median,
        "quartiles": (speed.low, speed.high),
        "calls": speed.calls,
        "over_one_by_one": speed.median / alone,
        "state_bytes_per_run": batch.bytes_per_row,
        "peak_bytes_per_run": peak,
        "compile_seconds": compiled.seconds,
    }
    print(
        f"together, {count:>4} runs  {speed}, {speed.median / alone:.2f} x one by one; a run's state "
        f"{memory.format_bytes(batch.bytes_per_row)}"
        + ("" if peak is None else f", peak {memory.format_bytes(peak)}")
        + f"; compiled in {compiled.seconds:.0f} s",
        flush=True,
    )
    return result


def rate(step: Callable[[], Any], updates: int, seconds: float) -> Rate:
    """Updates per second of at least three calls; the first two, the run's warm-up, do not count."""
    times: list[float] = []
    for _ in range(2):
        jax.block_until_ready(step())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - began)
    slow, median, fast = (updates / seconds for seconds in np.quantile(times, [0.75, 0.5, 0.25]))
    return Rate(median, slow, fast, len(times))


def in_processes(compute: str) -> Rate:
    """Rate of one run per core, all measured in the same seconds: quartiles summed, the fewest calls of any."""
    children = [
        subprocess.Popen(
            [sys.executable, *sys.argv, f"--compute={compute}", f"--child={','.join(map(str, cores))}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for cores in workers.core_groups(None)
    ]
    for process in children:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise ConfigError(f"a process of the {compute} benchmark ended early; see above.")
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = [Rate(*json.loads(process.communicate()[0])) for process in children]
    medians, lows, highs, calls = zip(*rates, strict=True)
    return Rate(sum(medians), sum(lows), sum(highs), min(calls))


def child(config: RunConfig, cores: list[int]) -> int:
    """One of several processes: compile, say so, wait for all, measure."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    step, updates = one_run(config)
    jax.block_until_ready(step())
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(rate(step, updates, SECONDS.value)), flush=True)
    return 0


if __name__ == "__main__":
    command_line.define_config_flags()
    command_line.run(main)
