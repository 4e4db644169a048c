"""A policy written in several formats, each of them run and compared with it, and what there is to say of them.

| format | files | needs where it runs |
|---|---|---|
| `c` | `policy.c`, `policy.h` | a C99 compiler |
| `onnx` | `policy.onnx` | onnxruntime, or another reader of ONNX |
| `jax` | `policy_jax.npz` | jax and NumPy |
| `numpy` | `policy_numpy.npz`, `policy.py` | NumPy |

`export.json` beside them says where they come from, which entries of an observation they do not read, and what
compaction took away. The format `jax` holds any network, as it is; the others hold its compact program.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlx2_jax.errors import ConfigError
from rlx2_jax.export import c_source, compaction, numpy_archive, onnx_graph, tracing, xla_artifact
from rlx2_jax.export.describe import describe, described
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import Array, Program, Size
from rlx2_jax.io import files
from rlx2_jax.networks import Params
from rlx2_jax.policies import Policy

FORMATS = ("c", "onnx", "jax", "numpy")
"""Names of the formats."""

SUMMARY = "export.json"
"""Name of the file that tells of the others."""

TOLERANCE = 1e-5
"""Largest deviation of an action from the policy's, in float32, where rounding matters less than that."""

ROUNDINGS = 4
"""Times that weights are rounded otherwise to see how much rounding matters, and how often that is allowed."""

OBSERVATIONS = 64
"""Observations, of a normal distribution, that an artefact is compared with the policy on."""

Function = Callable[[Any], Any]
"""Observations `[N, O]` to actions `[N, A]`."""


class Artifact(NamedTuple):
    """A policy in one format."""

    format: str
    """One of `FORMATS`."""
    files: tuple[Path, ...]
    """What was written."""
    deviation: float | None
    """Largest deviation from the policy on random observations; None where there is nothing to run it with."""
    act: Function | None
    """What was compared: runs the files that were written, jittable with the format jax."""


class Export(NamedTuple):
    """What was written."""

    artifacts: tuple[Artifact, ...]
    """One for each format."""
    program: Program | None
    """The compact program; None where `jax` alone was asked for."""
    sizes: tuple[Size, Size] | None
    """Before and after compaction."""
    unread: tuple[str, ...]
    """Names of the entries of an observation that no action depends on."""


def available() -> tuple[str, ...]:
    """Formats that can be written here."""
    packages = {"onnx": ("onnx", "onnxruntime"), "jax": ("flatbuffers",)}
    found = lambda name: all(map(importlib.util.find_spec, packages.get(name, ())))
    return tuple(name for name in FORMATS if found(name))


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that there are not, or that cannot be written here.

    Raises:
      ConfigError: with the mend.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; valid: {', '.join(FORMATS)}.")
        if name not in available():
            raise ConfigError(onnx_graph.MISSING if name == "onnx" else xla_artifact.MISSING)


def save(
    policy: Policy,
    directory: str | Path,
    formats: Sequence[str] | None = None,
    *,
    int8: bool = False,
    tanh: str = "libm",
) -> Export:
    """Write a policy in each format, and compare what was written with it.

    Args:
      policy: as of `policies.load`.
      directory: of the files; made if it is not there.
      formats: of `FORMATS`; None is all that can be written here.
      int8: weights of 8 bits, of the format c alone.
      tanh: of the format c alone, see `c_source.write`.

    Raises:
      ConfigError: an unknown format, one that needs a package that is missing, a network that only the format jax can
        hold, or an artefact that deviates from the policy by more than `TOLERANCE` and rounding, and is removed.
      FileError: something cannot be written.
    """
    formats = tuple(dict.fromkeys(available() if formats is None else formats))
    check_formats(formats)
    directory, description = Path(directory), describe(policy)
    traced = tracing.trace(policy) if set(formats) - {"jax"} else None
    compact = None if traced is None else compaction.compact(traced)
    with files.writing(directory):
        files.make_writable(directory)
    job = _Job(policy, description, compact, directory, int8, tanh)
    result = Export(tuple(job.write(name) for name in formats), compact, None, ())
    if traced is not None and compact is not None:
        less = compaction.compare(traced, compact)
        unread = tuple(description.observation_names[i] for i in less.unread)
        result = result._replace(sizes=(less.before, less.after), unread=unread)
    files.write_json(directory / SUMMARY, _summary(result, description, job))
    return result


@dataclasses.dataclass(frozen=True)
class _Job:
    """One policy on its way into files."""

    policy: Policy
    description: Description
    program: Program | None
    directory: Path
    int8: bool
    tanh: str

    def write(self, name: str) -> Artifact:
        """Write a format, and compare it with the policy.

        Raises:
          ConfigError: it deviates; what was written is gone again.
        """
        written, function = getattr(self, f"_{name}")()
        deviation = None if function is None else self._deviation(function)
        exact = not (name == "c" and self.int8)
        # NaN is no deviation that could be allowed.
        if deviation is not None and exact and not deviation <= self._allowed:
            for path in written:
                path.unlink()
            raise ConfigError(
                f"{written[0]} would deviate from the policy by {deviation:.2g}, more than {self._allowed:.2g}; use "
                "another format, and tell its authors."
            )
        return Artifact(name, written, deviation, function)

    def _deviation(self, function: Function) -> float:
        return float(np.abs(np.asarray(function(self._observations)) - self._expected).max())

    @functools.cached_property
    def _allowed(self) -> float:
        """`TOLERANCE`, or as much as the policy itself changes, several times, where each weight's last bit does."""
        rng = np.random.default_rng(1)

        def rounded(weights: Any) -> Array:
            weights = np.asarray(weights)
            return np.nextafter(weights, weights * rng.choice((0, 2), weights.shape).astype(weights.dtype))

        draws = [self._act(jax.tree.map(rounded, self.policy.params)) for _ in range(ROUNDINGS)]
        return max(TOLERANCE, ROUNDINGS * float(max(np.abs(draw - self._expected).max() for draw in draws)))

    @functools.cached_property
    def _expected(self) -> Array:
        return self._act(self.policy.params)

    @functools.cached_property
    def _observations(self) -> Array:
        return np.random.default_rng(0).normal(size=(OBSERVATIONS, self.policy.sizes[0])).astype(np.float32)

    @functools.cached_property
    def _act(self) -> Callable[[Params], Array]:
        """Actions, for the observations, of the policy with other weights."""
        act = jax.jit(lambda params, observations: self.policy._replace(params=params).act(observations))
        with jax.default_matmul_precision("float32"):
            compiled = act.lower(self.policy.params, self._observations).compile()
        return lambda params: np.asarray(compiled(params, self._observations))

    def _c(self) -> tuple[tuple[Path, ...], Function | None]:
        written = c_source.write(self._compact, self.description, int8=self.int8, tanh=self.tanh)
        paths = self.directory / "policy.c", self.directory / "policy.h"
        for path, text in zip(paths, (written.source, written.header), strict=True):
            files.write_bytes(path, text.encode())
        return paths, compiled(paths[0], self._compact[-1].size)

    def _onnx(self) -> tuple[tuple[Path, ...], Function]:
        path = self.directory / "policy.onnx"
        files.write_bytes(path, onnx_graph.write(self._compact, self.description))
        return (path,), onnx_graph.load(path.read_bytes())

    def _jax(self) -> tuple[tuple[Path, ...], Function]:
        path = self.directory / "policy_jax.npz"
        xla_artifact.save(path, self.policy, self.description)
        exported = xla_artifact.load(path).exported
        return (path,), exported.call

    def _numpy(self) -> tuple[tuple[Path, ...], Function]:
        path, runner = self.directory / "policy_numpy.npz", self.directory / "policy.py"
        numpy_archive.save(path, self._compact, self.description)
        numpy_archive.save_runner(runner)
        act: Function = runpy.run_path(str(runner))["load"](path)
        return (path, runner), act

    @property
    def _compact(self) -> Program:
        assert self.program is not None
        return self.program


def compiled(source: Path, actions: int) -> Function | None:
    """The function of a policy's C file, or None where there is no C compiler.

    Args:
      source: `policy.c`, its header beside it.
      actions: entries of an action.

    Raises:
      ConfigError: it does not compile.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as aside:
        library = Path(aside) / "policy.so"
        options = ("-std=c99", "-O2", "-ffp-contract=off", "-shared", "-fPIC")
        command = (compiler, *options, str(source), "-o", str(library), "-lm")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"{source} does not compile ({done.stderr.strip()[:200]}); use another C compiler.")
        act = ctypes.CDLL(str(library)).policy_act

    def function(observations: Array) -> Array:
        results = np.zeros((len(observations), actions), np.float32)
        for observation, result in zip(np.ascontiguousarray(observations, np.float32), results, strict=True):
            act(ctypes.c_void_p(observation.ctypes.data), ctypes.c_void_p(result.ctypes.data))
        return results

    return function


def _summary(result: Export, description: Description, job: _Job) -> dict[str, Any]:
    sizes = dict(zip(("before", "after"), result.sizes or (), strict=False))
    return {
        **described(description),
        "unread": result.unread,
        "compaction": {when: size._asdict() for when, size in sizes.items()},
        "artifacts": {
            a.format: {
                "files": {path.name: path.stat().st_size for path in a.files},
                "deviation": a.deviation,
                **({"int8": job.int8, "tanh": job.tanh} if a.format == "c" else {}),
            }
            for a in result.artifacts
        },
    }
