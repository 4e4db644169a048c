"""A program as an archive of NumPy arrays, connections alone; `numpy_runner` runs it.

The archive is an `.npz` without pickles. `about` is a JSON text: the policy's description, and `program`, a list of
`{"name", "inputs", "size"}` as of `program.Operation`. The arrays of operation k are:

| operation | arrays |
|---|---|
| `constant` | `k/data` `[size]` |
| `take` | `k/indices` `[size]` |
| `linear` | `k/bias` `[size]`, `k/values` and `k/indices` `[connections]`, `k/starts` `[size + 1]` |

Weights stand by output: those of output j are the `values` from place `starts[j]` to `starts[j + 1]`, and `indices`
there says which inputs they come from. In the list `linear` has `from`, its number of inputs, and `connections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.errors import CheckpointError
from rlx2_jax.export import numpy_runner
from rlx2_jax.export.describe import described, description_of
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import BINARY, REDUCTIONS, UNARY, Array, Operation, Program
from rlx2_jax.io import archives, files
from rlx2_jax.runtime import memory

FORMAT = 1
"""Version of the format."""

_INPUTS = {
    "input": 0,
    "constant": 0,
    "linear": 1,
    "take": 1,
    "select": 3,
    **dict.fromkeys((*UNARY, *REDUCTIONS), 1),
    **dict.fromkeys(BINARY, 2),
}
"""Values that an operation reads; `concat` any."""


class Archive(NamedTuple):
    """An archive that was read."""

    program: Program
    """What it computes."""
    description: Description
    """What its observations and actions are, and where it comes from."""


def save(path: Path, program: Program, description: Description) -> None:
    """Write the archive.

    Args:
      path: of the file.
      program: of the policy.
      description: of it.

    Raises:
      FileError: it cannot be written.
    """
    about = {**described(description), "format": FORMAT, "program": [_step(operation) for operation in program]}
    arrays = {f"{k}/{name}": a for k, operation in enumerate(program) for name, a in _arrays_of(operation).items()}
    archives.save(path, about, arrays)


def save_runner(path: Path) -> None:
    """Write the module that runs such an archive.

    Raises:
      FileError: it cannot be written.
    """
    files.write_bytes(path, Path(numpy_runner.__file__).read_bytes())


def load(path: Path) -> Archive:
    """Read the archive.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is damaged, or of another format.
    """
    about, arrays = archives.load(path, "archive", _expected, "write it again")
    steps = about["program"]
    weights = sum(step["from"] * step["size"] for step in steps if step["name"] == "linear")
    memory.check_fits(4 * weights, f"the matrices of {path}", "use a machine with more memory", on_host=True)
    try:
        program = tuple(_operation(k, steps, arrays) for k in range(len(steps)))
    except ValueError as error:
        raise CheckpointError(f"the archive {path} is damaged ({error}); write it again.") from None
    return Archive(program, description_of(about))


def _step(operation: Operation) -> dict[str, Any]:
    step: dict[str, Any] = {"name": operation.name, "inputs": [*operation.inputs], "size": operation.size}
    if operation.weight is not None:
        step |= {"from": operation.weight.shape[0], "connections": int(np.count_nonzero(operation.weight))}
    return step


def _arrays_of(operation: Operation) -> dict[str, Array]:
    if operation.weight is not None:
        outputs, inputs = np.nonzero(operation.weight.T)
        counts = np.count_nonzero(operation.weight, 0)
        return {
            "bias": np.asarray(operation.bias, np.float32),
            "values": operation.weight.T[outputs, inputs].astype(np.float32),
            "indices": inputs.astype(np.int32),
            "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        }
    if operation.name == "take":
        return {"indices": np.asarray(operation.indices, np.int32)}
    return {} if operation.data is None else {"data": np.asarray(operation.data, np.float32)}


def _expected(
    about: dict[str, Any], headers: Mapping[str, archives.Announced]
) -> dict[str, tuple[tuple[int, ...], Any]]:
    archives.require(about, {"format": int, "program": list})
    if about["format"] != FORMAT:
        raise ValueError(f"it is of format {about['format']}, not {FORMAT}")
    description, steps = description_of(about), about["program"]
    for k, step in enumerate(steps):
        _check_step(k, step, steps)
    sizes = [len(description.observation_names), len(description.action_names)]
    if not steps or [steps[0]["size"], steps[-1]["size"]] != sizes:
        raise ValueError("its program is of other sizes than its description")
    expected: dict[str, tuple[tuple[int, ...], Any]] = {}
    for k, step in enumerate(steps):
        size = (step["size"],)
        if step["name"] == "constant":
            expected[f"{k}/data"] = (size, np.float32)
        elif step["name"] == "take":
            expected[f"{k}/indices"] = (size, np.int32)
        elif step["name"] == "linear":
            connections = (step["connections"],)
            expected |= {f"{k}/bias": (size, np.float32), f"{k}/starts": ((step["size"] + 1,), np.int32)}
            expected |= {f"{k}/values": (connections, np.float32), f"{k}/indices": (connections, np.int32)}
    return expected


def _check_step(k: int, step: Any, steps: list[Any]) -> None:
    """See that an operation could be: the values that it reads are there, and of a length that fits.

    Raises:
      ValueError: it could not.
    """
    wrong = ValueError(f"its operation {k} cannot be")
    if not isinstance(step, dict):
        raise wrong
    archives.require(step, {"name": str, "inputs": list, "size": int})
    archives.sizes([step["size"]], 1)
    name, inputs = step["name"], step["inputs"]
    if (name not in _INPUTS and name != "concat") or (name == "input") != (k == 0):
        raise wrong
    if len(inputs) != _INPUTS.get(name, len(inputs)) or not all(type(i) is int and 0 <= i < k for i in inputs):
        raise wrong
    sizes = [steps[i]["size"] for i in inputs]
    if name == "linear":
        archives.require(step, {"from": int, "connections": int})
        fits = step["from"] == sizes[0] and 0 <= step["connections"] <= sizes[0] * step["size"]
    elif name == "concat":
        fits = sum(sizes) == step["size"]
    elif name in REDUCTIONS:
        fits = step["size"] == 1
    else:
        fits = name in ("input", "constant", "take") or ({*sizes} <= {1, step["size"]} and step["size"] in sizes)
    if not fits:
        raise wrong


def _operation(k: int, steps: list[dict[str, Any]], arrays: Mapping[str, Array]) -> Operation:
    step = steps[k]
    name, inputs, size = step["name"], tuple(step["inputs"]), step["size"]
    part = lambda kind: arrays[f"{k}/{kind}"]
    if name == "constant":
        return Operation(name, inputs, size, data=part("data"))
    if name not in ("take", "linear"):
        return Operation(name, inputs, size)
    indices = part("indices")
    if len(indices) and not (indices.min() >= 0 and indices.max() < steps[inputs[0]]["size"]):
        raise ValueError(f"operation {k} reads what is not there")
    if name == "take":
        return Operation(name, inputs, size, indices=tuple(map(int, indices)))
    starts = part("starts")
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != len(indices) or (counts < 0).any():
        raise ValueError(f"the starts of operation {k} are not in order")
    if not (np.isfinite(part("values")).all() and np.isfinite(part("bias")).all()):
        raise ValueError(f"operation {k} has weights that are not finite")
    weight = np.zeros((step["from"], size), np.float32)
    weight[indices, np.repeat(np.arange(size), counts)] = part("values")
    return Operation(name, inputs, size, weight=weight, bias=part("bias"))
