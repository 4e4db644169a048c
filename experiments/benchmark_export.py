"""What a policy costs where it is deployed: dense and sparse C, ONNX Runtime, NumPy and JAX beside each other.

  python experiments/benchmark_export.py                                 a fresh policy of TD3 on Hopper-v4
  python experiments/benchmark_export.py --workdir=runs/hopper           that of a run

  C dense      the same network with no weight zero, float32
  C sparse     the policy, compact, float32
  C int8       the same with weights of 8 bits
  ONNX Runtime, NumPy, JAX: the policy, compact but for JAX, which has it jitted

C is compiled for size (-Os) and for speed (-O3), for this machine and, with arm-none-eabi-gcc, for a Cortex-M4. Code
and read-only data are those of the object file, without functions of libm; the stack is that of the deepest call,
likewise. Latency is of one observation after another in one process, in which contestants take turns; what is compared
is what one took with what dense C, compiled alike, took in the same round. Calls of C are counted without Python.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from rlx2_jax import envs, policies
from rlx2_jax.analysis import benchmarks
from rlx2_jax.config import command_line, presets, registry, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.export import c_source, compaction, program, tracing
from rlx2_jax.export.description import Description
from rlx2_jax.io import files, provenance
from rlx2_jax.networks import structure

WORKDIR = command_line.define_path("workdir", None, "directory of a run whose last policy is measured")
PRESET = flags.DEFINE_string("preset", "td3/Hopper-v4", "of a fresh policy, where no workdir is given")
SECONDS = flags.DEFINE_float("seconds", 30.0, "time to spend on latencies")
OUTPUT = command_line.define_path("output", "benchmark_export.json", "JSON file to write")

OBSERVATIONS = 256
"""Of a normal distribution, over and over again."""

C_CALLS, PYTHON_CALLS = 500, 20
"""Made in each turn."""

HOST = ("gcc", "-std=c99", "-ffp-contract=off", "-fPIC")
CORTEX_M4 = (
    *("arm-none-eabi-gcc", "-std=c99", "-ffp-contract=off", "-mcpu=cortex-m4", "-mthumb"),
    *("-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
)

REPEAT = """\
#include <stdint.h>
#include "policy.h"

void repeat(const float *observations, uint32_t count, uint32_t times)
{
    float action[POLICY_ACTION_SIZE];
    for (uint32_t n = 0; n < times; n++) {
        (void)policy_act(observations + n % count * POLICY_OBSERVATION_SIZE, action);
    }
}
"""


class Memory(NamedTuple):
    """What an object file takes, in bytes."""

    code: int
    read_only: int
    stack: int


class Contestant(NamedTuple):
    """A policy in one of its forms."""

    call: Callable[[], Any]
    """Acts `calls` times."""
    calls: int
    host: Memory | None = None
    cortex_m4: Memory | None = None


def main(argv: Sequence[str]) -> int | None:
    """Measure, print, write."""
    del argv
    if not shutil.which(HOST[0]):
        raise ConfigError(f"there is no {HOST[0]} to compile the policy with; install it.")
    path: Path = OUTPUT.value
    command_line.check_output(path, OUTPUT.name, (".json",))
    policy = policies.load(WORKDIR.value) if WORKDIR.value else fresh(PRESET.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    small, before = compaction.compact(tracing.trace(policy)), os.getloadavg()[0]
    print(
        f"{provenance.device()}, jax {jax.__version__}, {policy.about['env']}, units {program.widths(small)}, ", end=""
    )
    print(f"{program.connections(small)} connections")
    with tempfile.TemporaryDirectory() as directory:
        contestants = {**in_c(policy, small, Path(directory)), **in_python(policy, small)}
        times = benchmarks.in_turns({name: one.call for name, one in contestants.items()}, SECONDS.value)
    results = [_result(name, contestants, times) for name in contestants]
    print(table(results))
    load = {"before": before, "after": os.getloadavg()[0]}
    about = {"units": program.widths(small), "connections": program.connections(small), "load": load}
    files.write_json(path, provenance.about() | about | {"results": results})
    print(f"load of the machine {load['before']:.1f} before and {load['after']:.1f} after, this process included then")
    print(f"wrote {path}")
    return 0


def fresh(preset: str) -> policies.Policy:
    """The policy that a run of a preset begins with."""
    config = resolve(presets.make_config([preset]))
    env = envs.make(config.env, config.backend)
    sizes = env.observation_size, env.action_size
    agent = registry.find(config.agent)(config, *sizes)
    hparams = structure.make_hparams(config, *sizes)
    actor = jax.jit(lambda key: agent.init(key, hparams).actor.masked().params)
    return policies.Policy(actor(jax.random.PRNGKey(0)), policies.describe(config, 0, None, sizes))


def dense(policy: policies.Policy) -> policies.Policy:
    """A policy of the same network, without zeros."""
    inputs, outputs = policy.sizes
    net = structure.nets(policies.check(policy.about), outputs)["actor"]
    return policy._replace(params=net.init(jax.random.PRNGKey(1), inputs))


def describe(policy: policies.Policy) -> Description:
    """Numbers for names, and actions as they are."""
    inputs, outputs = policy.sizes
    names = [tuple(f"{what} {i}" for i in range(size)) for what, size in (("sensor", inputs), ("motor", outputs))]
    return Description(policy.about["env"], names[0], names[1], (-1.0,) * outputs, (1.0,) * outputs, {})


def samples(inputs: int) -> np.ndarray:
    """Observations `[OBSERVATIONS, inputs]`."""
    return np.random.default_rng(0).normal(size=(OBSERVATIONS, inputs)).astype(np.float32)


def in_c(policy: policies.Policy, small: program.Program, directory: Path) -> dict[str, Contestant]:
    """Contestants in C, for size and for speed."""
    description = describe(policy)
    sources = {
        "C dense": c_source.write(tracing.trace(dense(policy)), description),
        "C sparse": c_source.write(small, description),
        "C int8": c_source.write(small, description, int8=True),
    }
    print(f"int8 changes actions by {c_source.int8_error(small, samples(policy.sizes[0])):.1e} at most")
    return {
        f"{name} {level}": compiled(source, level, directory / name.replace(" ", "_") / level)
        for level in ("-Os", "-O3")
        for name, source in sources.items()
    }


def compiled(source: c_source.CSource, level: str, directory: Path) -> Contestant:
    """A policy in C as a contestant, compiled in a directory of its own."""
    directory.mkdir(parents=True)
    for name, text in (("policy.c", source.source), ("policy.h", source.header), ("repeat.c", REPEAT)):
        (directory / name).write_text(text)
    host = memory(HOST, "size", level, directory)
    _run(*HOST, level, "-shared", "policy.o", "repeat.c", "-o", "policy.so", "-lm", cwd=directory)
    repeat = ctypes.CDLL(str(directory / "policy.so")).repeat
    inputs = int(re.findall(r"OBSERVATION_SIZE (\d+)", source.header)[0])
    observations = samples(inputs)
    pointer = ctypes.c_void_p(observations.ctypes.data)

    def call() -> np.ndarray:
        repeat(pointer, ctypes.c_uint32(OBSERVATIONS), ctypes.c_uint32(C_CALLS))
        return observations  # Held as long as it is pointed at.

    target = memory(CORTEX_M4, "arm-none-eabi-size", level, directory) if shutil.which(CORTEX_M4[0]) else None
    return Contestant(call, C_CALLS, host, target)


def memory(compiler: Sequence[str], size: str, level: str, directory: Path) -> Memory:
    """Bytes that `policy.c` takes, by sections of its object file and the compiler's account of the stack."""
    _run(*compiler, level, "-fstack-usage", "-c", "policy.c", "-o", "policy.o", cwd=directory)
    sections = re.findall(r"^(\.\S+)\s+(\d+)", _run(size, "-A", "policy.o", cwd=directory), re.MULTILINE)
    total = lambda prefix: sum(int(count) for name, count in sections if name.startswith(prefix))
    frames = re.findall(r":(\w+)\t(\d+)\t", (directory / "policy.su").read_text())
    depths = {name: int(depth) for name, depth in frames}
    act = depths.pop("policy_act")
    depths.pop("policy_act_scaled")
    return Memory(total(".text"), total(".rodata"), act + max(depths.values(), default=0))


def in_python(policy: policies.Policy, small: program.Program) -> dict[str, Contestant]:
    """Contestants that Python calls."""
    observations = list(samples(policy.sizes[0]))
    act = jax.jit(policy.act)
    calls: dict[str, Callable[[np.ndarray], Any]] = {
        "NumPy": lambda x: program.run(small, x),
        "JAX": lambda x: jax.block_until_ready(act(x)),
    }
    runtime = onnx_runtime(small, describe(policy))
    if runtime is not None:
        calls = {"ONNX Runtime": runtime, **calls}

    def contestant(call: Callable[[np.ndarray], Any]) -> Contestant:
        call(observations[0])
        return Contestant(lambda: [call(x) for x in observations[:PYTHON_CALLS]], PYTHON_CALLS)

    return {name: contestant(call) for name, call in calls.items()}


def onnx_runtime(small: program.Program, description: Description) -> Callable[[np.ndarray], Any] | None:
    """The policy as ONNX Runtime has it, on one thread; None where that is not installed."""
    names = ("onnx", "onnxruntime", "rlx2_jax.export.onnx_graph")
    try:
        _, onnxruntime, onnx_graph = map(importlib.import_module, names)
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_graph.write(small, description), options)
    (name,) = (value.name for value in session.get_inputs())
    batched = len(session.get_inputs()[0].shape) == 2
    return lambda x: session.run(None, {name: x[None] if batched else x})


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Results as lines of text."""
    head = f"{'':<14} {'code':>7} {'constants':>9} {'stack':>6}   {'M4 code':>7} {'constants':>9} {'stack':>6}"
    lines = [f"{head} {'flash/dense':>12} {'us (quartiles)':>26} {'time/dense':>11} {'n':>6}"]
    for result in results:
        cells = [f"{result['contestant']:<14}"]
        for machine, widths in (("host", (7, 9, 6)), ("cortex_m4", (9, 9, 6))):
            values = (result[machine] or {}).get
            keys = zip(("code", "read_only", "stack"), widths, strict=True)
            cells += [f"{values(key, ''):>{width}}" for key, width in keys]
        flash, ratio = result.get("flash_over_dense"), result.get("over_dense")
        low, high = (1e6 * q for q in result["seconds_quartiles"])
        cells.append(f"{'' if flash is None else f'{flash:.3f}':>12}")
        microseconds = f"{1e6 * result['seconds']:.2f} ({low:.2f}-{high:.2f})"
        cells.append(f"{microseconds:>26}")
        cells.append(f"{'' if ratio is None else f'{ratio:.3f}':>11} {result['n']:>6}")
        lines.append(" ".join(cells))
    return "\n".join(lines)


def _result(name: str, contestants: Mapping[str, Contestant], times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    one = contestants[name]
    seconds = [t / one.calls for t in times[name]]
    result: dict[str, Any] = {
        "contestant": name,
        "host": one.host and one.host._asdict(),
        "cortex_m4": one.cortex_m4 and one.cortex_m4._asdict(),
        "seconds": statistics.median(seconds),
        "seconds_quartiles": benchmarks.quartiles(seconds),
        "n": len(seconds),
    }
    reference = f"C dense {name.split()[-1]}"
    if reference in contestants:
        other, memory_ = contestants[reference], contestants[reference].host
        assert one.host is not None and memory_ is not None
        ratios = [t / (s / other.calls) for t, s in zip(seconds, times[reference], strict=True)]
        flash = (one.host.code + one.host.read_only) / (memory_.code + memory_.read_only)
        result |= {
            "flash_over_dense": flash,
            "over_dense": statistics.median(ratios),
            "over_dense_quartiles": benchmarks.quartiles(ratios),
        }
    return result


def _run(*command: str, cwd: Path) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{command[0]} failed ({done.stderr.strip()[:200]}); use a compiler that takes C99.")
    return done.stdout


if __name__ == "__main__":
    command_line.run(main)
