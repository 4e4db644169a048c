"""A policy as a short list of operations on vectors: what every format but JAX's own is written from.

A program is single assignment: operation k makes value k, a vector of float32, from values before it; the last one is
the action. There is no batch and no shape but a length.

| operation | inputs | what it makes |
|---|---|---|
| `input` | | the observation |
| `constant` | | `data` |
| `linear` | x | `x @ weight + bias`, `weight` `[in, out]` with zeros where there is no connection |
| `take` | x | `x[indices]` |
| `concat` | any | one after the other |
| `sum`, `largest`, `smallest` | x | one number of all of x |
| names in `UNARY` | x | each entry by itself |
| names in `BINARY` | x, y | entry by entry; a vector of length 1 meets each entry of the other |
| `select` | condition, x, y | x where the condition is 1, y where it is 0; lengths as of `BINARY` |

Comparisons make 1 and 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Array = np.ndarray
"""A constant, or a value."""

UNARY: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "negative": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
}
"""Functions of one vector, as NumPy has them; NaN stays NaN in each, `relu` too."""

BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "greater": lambda x, y: (x > y).astype(np.float32),
    "greater_equal": lambda x, y: (x >= y).astype(np.float32),
    "equal": lambda x, y: (x == y).astype(np.float32),
}
"""Functions of two vectors; `maximum` and `minimum` of a NaN are NaN."""

REDUCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "sum": lambda x: np.sum(x, keepdims=True),
    "largest": lambda x: np.max(x, keepdims=True),
    "smallest": lambda x: np.min(x, keepdims=True),
}
"""Functions of one vector that make one number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One step of a program."""

    name: str
    """What it does, as in the table."""
    inputs: tuple[int, ...]
    """Values that it reads."""
    size: int
    """Entries of the value that it makes."""
    data: Array | None = None
    """Of `constant`: `[size]`."""
    weight: Array | None = None
    """Of `linear`: `[in, size]`."""
    bias: Array | None = None
    """Of `linear`: `[size]`."""
    indices: tuple[int, ...] = ()
    """Of `take`."""


Program = tuple[Operation, ...]
"""Operations in turn; the first is the `input`, the last makes the action."""


def evaluate(operation: Operation, inputs: list[Array]) -> Array:
    """The value `[size]` that an operation makes of the values that it reads, in their type."""
    name = operation.name
    if name == "linear":
        assert operation.weight is not None and operation.bias is not None
        return inputs[0] @ operation.weight + operation.bias
    if name == "constant":
        assert operation.data is not None
        return operation.data
    if name == "take":
        return inputs[0][list(operation.indices)]
    if name == "concat":
        return np.concatenate(inputs)
    if name == "select":
        return np.where(inputs[0] != 0, inputs[1], inputs[2])
    if name in REDUCTIONS:
        return REDUCTIONS[name](inputs[0])
    return UNARY[name](*inputs) if name in UNARY else BINARY[name](*inputs)


def run(program: Program, observation: Array) -> Array:
    """The action `[A]` for an observation `[O]`, one operation after another."""
    values: list[Array] = []
    for operation in program:
        if operation.name == "input":
            values.append(np.asarray(observation, np.float32))
        else:
            values.append(evaluate(operation, [values[i] for i in operation.inputs]).astype(np.float32))
    return values[-1]


def reached(program: Program) -> frozenset[int]:
    """The values that the action is made of, itself among them."""
    found = {len(program) - 1}
    for k in reversed(range(len(program))):
        if k in found:
            found.update(program[k].inputs)
    return frozenset(found)


def connections(program: Program) -> int:
    """Weights that are not zero."""
    return sum(int(np.count_nonzero(o.weight)) for o in program if o.weight is not None)


def widths(program: Program) -> tuple[int, ...]:
    """Units of each linear operation: inputs of the first, and the outputs of all."""
    linear = [o.weight.shape for o in program if o.weight is not None]
    return (*(shape[0] for shape in linear[:1]), *(shape[1] for shape in linear))


class Size(NamedTuple):
    """How large a program is."""

    widths: tuple[int, ...]
    """Inputs, and the units of each matrix."""
    connections: int
    """Weights that are not zero."""
    bytes: int
    """Of all its numbers in float32, those of matrices zeros and all."""


def size_of(program: Program) -> Size:
    """The size of a program."""
    held = [array.size for o in program for array in (o.data, o.weight, o.bias) if array is not None]
    return Size(widths(program), connections(program), 4 * sum(held))
