"""The same program with less in it: what a sparse network computes without need goes, and its actions stay.

Three passes over the operations:

1. Bounds, from the observation on: each entry of each value lies between two numbers. Where they meet, the entry is a
   constant: a unit without connections into it is its bias, and a ReLU that cannot be reached is 0.
2. Need, from the action back: which entries anything reads that depends on the observation.
3. The program again, with the entries that are needed and no constants; constants go into the next bias.

Actions are equal to rounding, for finite observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rlx2_jax.export.program import BINARY, REDUCTIONS, UNARY, Array, Operation, Program, Size, evaluate, size_of

_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("sign", "sin", "cos"), (-1.0, 1.0)),
    **dict.fromkeys(("greater", "greater_equal", "equal"), (0.0, 1.0)),
    **dict.fromkeys(("square", "abs", "sqrt", "rsqrt"), (0.0, np.inf)),
    "expm1": (-1.0, np.inf),
}
"""What an operation that does not rise everywhere makes at least and at most, of whatever."""

_RISING = ("relu", "tanh", "exp", "logistic")
"""Functions of one vector that rise everywhere: bounds of the input become bounds of the value."""


class Compaction(NamedTuple):
    """What became less, in a table and in a sentence."""

    before: Size
    """Of the program that was given."""
    after: Size
    """Of the one that came of it."""
    unread: tuple[int, ...]
    """Entries of the observation that no action depends on."""


class _Bounds(NamedTuple):
    """Where the entries of a value lie, `[size]` each; equal where they are constants."""

    low: Array
    high: Array

    @property
    def known(self) -> Array:
        """Which entries are constants."""
        return self.low == self.high


def compact(program: Program) -> Program:
    """An equal program without units that are constant or that nothing reads.

    Args:
      program: as of `tracing`; its observation keeps all its entries.
    """
    bounds = _bounds(program)
    needed = _needed(program, bounds)
    return _Builder(program, bounds, needed).build()


def compare(before: Program, after: Program) -> Compaction:
    """What `compact` made less."""
    read = _needed(after, _bounds(after))[0]
    return Compaction(
        before=size_of(before),
        after=size_of(after),
        unread=tuple(int(i) for i in np.flatnonzero(~read)),
    )


def _bounds(program: Program) -> list[_Bounds]:
    found: list[_Bounds] = []
    with np.errstate(all="ignore"):
        for operation in program:
            low, high = _bounded(operation, [found[i] for i in operation.inputs])
            unclear = np.isnan(low) | np.isnan(high)
            found.append(_Bounds(np.where(unclear, -np.inf, low), np.where(unclear, np.inf, high)))
    return found


def _bounded(operation: Operation, inputs: list[_Bounds]) -> tuple[Array, Array]:
    """Bounds of one operation, NaN where there are none."""
    name, size = operation.name, operation.size
    if name == "constant":
        assert operation.data is not None
        return operation.data.astype(np.float64), operation.data.astype(np.float64)
    if name == "linear":
        assert operation.weight is not None and operation.bias is not None
        up, down = (np.maximum(operation.weight, 0), np.minimum(operation.weight, 0))
        low, high = inputs[0]
        return _times(low, up) + _times(high, down) + operation.bias, _times(high, up) + _times(
            low, down
        ) + operation.bias
    if name in ("take", "concat", *_RISING):
        low, high = (evaluate(operation, [bounds[side] for bounds in inputs]) for side in (0, 1))
        return low, high
    low, high = (np.full(size, limit) for limit in _RANGES.get(name, (-np.inf, np.inf)))
    if name in (*UNARY, *BINARY, *REDUCTIONS, "select"):
        known = _reads_only(operation, [bounds.known for bounds in inputs])
        value = np.broadcast_to(evaluate(operation, [bounds.low for bounds in inputs]), size)
        low, high = np.where(known, value, low), np.where(known, value, high)
    return low, high


def _times(vector: Array, matrix: Array) -> Array:
    """A product in which nothing comes of a zero weight, whatever it is multiplied by."""
    finite = np.isfinite(vector)
    product = np.where(finite, vector, 0).astype(np.float64) @ matrix
    return product + sum(np.where(matrix[i] == 0, 0.0, matrix[i] * vector[i]) for i in np.flatnonzero(~finite))


def _reads_only(operation: Operation, flags: list[Array]) -> Array:
    """`[size]`: where everything that an entry is made of is flagged."""
    if operation.name in REDUCTIONS:
        return np.broadcast_to(flags[0].all(), operation.size)
    return np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(*flags)), operation.size)


def _needed(program: Program, bounds: list[_Bounds]) -> list[Array]:
    """Which entries of each value are read by what is no constant; of the last one, all."""
    needed = [np.zeros(operation.size, bool) for operation in program]
    needed[-1][:] = True
    for k in reversed(range(len(program))):
        operation, open_ = program[k], needed[k] & ~bounds[k].known
        start = 0
        for i in operation.inputs:
            size = program[i].size
            if operation.name == "linear":
                assert operation.weight is not None
                needed[i] |= (operation.weight[:, open_] != 0).any(1)
            elif operation.name == "take":
                needed[i][np.asarray(operation.indices, int)[open_]] = True
            elif operation.name == "concat":
                needed[i] |= open_[start : start + size]
                start += size
            elif operation.name in REDUCTIONS or size < operation.size:
                needed[i] |= open_.any()
            else:
                needed[i] |= open_
    return needed


class _Builder:
    """The program made again, an operation after the other."""

    def __init__(self, program: Program, bounds: list[_Bounds], needed: list[Array]):
        """Begin with the observation alone."""
        self.program, self.bounds = program, bounds
        self.kept = [np.flatnonzero(need & ~b.known) for need, b in zip(needed, bounds, strict=True)]
        self.kept[0] = np.arange(program[0].size)
        self.operations: list[Operation] = [program[0]]
        self.place = {0: 0}
        """Where the kept entries of an old value are made."""

    def build(self) -> Program:
        """The whole program."""
        for k, operation in enumerate(self.program):
            if k > 0 and len(self.kept[k]):
                self.place[k] = self.again(k, operation)
        last = len(self.program) - 1
        result = self.entries(last, np.arange(self.program[last].size))
        if result != len(self.operations) - 1:
            size = self.operations[result].size
            self.emit("take", (result,), size, indices=tuple(range(size)))
        return tuple(self.operations)

    def emit(self, name: str, inputs: tuple[int, ...], size: int, **more: object) -> int:
        """Add an operation."""
        self.operations.append(Operation(name, inputs, size, **more))  # type: ignore[arg-type]
        return len(self.operations) - 1

    def again(self, k: int, operation: Operation) -> int:
        """The kept entries of a value."""
        name, kept = operation.name, self.kept[k]
        if name == "linear":
            return self.linear(operation, kept)
        if operation.data is not None:  # A constant that is no number has no bounds.
            return self.emit(name, (), len(kept), data=operation.data[kept])
        if name in REDUCTIONS:
            return self.reduction(operation)
        if name == "take":
            return self.entries(operation.inputs[0], np.asarray(operation.indices, int)[kept])
        if name == "concat":
            return self.concat(operation, kept)
        sizes = [self.program[i].size for i in operation.inputs]
        inputs = tuple(
            self.entries(i, kept if size == operation.size else np.zeros(1, int))
            for i, size in zip(operation.inputs, sizes, strict=True)
        )
        return self.emit(name, inputs, len(kept))

    def linear(self, operation: Operation, kept: Array) -> int:
        """A product of what is kept of its input; constants among it are in the bias."""
        (i,) = operation.inputs
        assert operation.weight is not None and operation.bias is not None
        bounds, weight = self.bounds[i], operation.weight[:, kept]
        constant = _times(np.where(bounds.known, bounds.low, 0), weight)
        bias = (operation.bias[kept] + constant).astype(np.float32)
        return self.emit("linear", (self.place[i],), len(kept), weight=weight[self.kept[i]], bias=bias)

    def reduction(self, operation: Operation) -> int:
        """One number of what is kept and of the constants."""
        (i,), name = operation.inputs, operation.name
        known = self.bounds[i].known
        result = self.emit(name, (self.place[i],), 1)
        if not known.any():
            return result
        constant = REDUCTIONS[name](self.bounds[i].low[known]).astype(np.float32)
        join = {"sum": "add", "largest": "maximum", "smallest": "minimum"}[name]
        return self.emit(join, (result, self.emit("constant", (), 1, data=constant)), 1)

    def concat(self, operation: Operation, kept: Array) -> int:
        """Parts one after the other, each with what is kept of it."""
        parts, start = [], 0
        for i in operation.inputs:
            size = self.program[i].size
            own = kept[(kept >= start) & (kept < start + size)] - start
            parts += [self.entries(i, own)] if len(own) else []
            start += size
        return parts[0] if len(parts) == 1 else self.emit("concat", tuple(parts), len(kept))

    def entries(self, k: int, wanted: Array) -> int:
        """These entries of an old value, in this order, constants among them or not."""
        known, data = self.bounds[k].known[wanted], self.bounds[k].low[wanted].astype(np.float32)
        if known.all():
            return self.emit("constant", (), len(wanted), data=data)
        kept = self.kept[k]
        places = np.searchsorted(kept, wanted)
        if not known.any():
            if len(wanted) == len(kept) and (wanted == kept).all():
                return self.place[k]
            return self.emit("take", (self.place[k],), len(wanted), indices=tuple(map(int, places)))
        constants = self.emit("constant", (), int(known.sum()), data=data[known])
        both = self.emit("concat", (self.place[k], constants), len(kept) + int(known.sum()))
        places = np.where(known, len(kept) + np.cumsum(known) - 1, places)
        return self.emit("take", (both,), len(wanted), indices=tuple(map(int, places)))
