"""Random programs of every operation, which stay finite and well conditioned for ordinary observations."""

import numpy as np

from rlx2_jax.export.program import BINARY, REDUCTIONS, UNARY, Operation, Program, evaluate

ALL = ("constant", "linear", "take", "concat", *REDUCTIONS, *UNARY, *BINARY, "select")
LARGEST = 6.0
"""Absolute entries beyond this are squashed, so that nothing grows without bound."""

POSITIVE = ("log", "sqrt", "rsqrt", "log1p")
"""Operations whose argument is made positive, and so are divisors and the bases of powers."""


class _Builder:
    """A program in the making, with its values for a few observations."""

    def __init__(self, rng: np.random.Generator, inputs: int, samples: int = 16):
        self.rng = rng
        self.operations = [Operation("input", (), inputs)]
        self.values = [rng.normal(size=(samples, inputs)).astype(np.float32)]

    def add(self, operation: Operation) -> int:
        inputs = [self.values[i] for i in operation.inputs]
        made = [evaluate(operation, [value[n] for value in inputs]) for n in range(len(self.values[0]))]
        self.operations.append(operation)
        self.values.append(np.stack(made).astype(np.float32))
        if np.abs(self.values[-1]).max() > LARGEST:
            return self.add(Operation("tanh", (len(self.operations) - 1,), operation.size))
        return len(self.operations) - 1

    def any(self, size: int | None = None) -> int:
        """A value, with the given length or length 1."""
        fitting = [k for k, o in enumerate(self.operations) if size is None or o.size in (1, size)]
        return int(self.rng.choice(fitting[-8:]))

    def constant(self, size: int) -> int:
        data = self.rng.normal(size=size) if self.rng.random() < 0.7 else np.full(size, 0.5)
        return self.add(Operation("constant", (), size, data=data.astype(np.float32)))

    def positive(self, k: int) -> int:
        size = self.operations[k].size
        half = self.add(Operation("constant", (), 1, data=np.array([0.5], np.float32)))
        return self.add(Operation("add", (self.add(Operation("abs", (k,), size)), half), size))

    def linear(self, k: int, outputs: int) -> int:
        inputs = self.operations[k].size
        density = self.rng.choice([0.0, 0.02, 0.1, 0.5, 1.0])
        weight = self.rng.normal(size=(inputs, outputs)) * (self.rng.random((inputs, outputs)) < density)
        weight, bias = weight / np.sqrt(inputs), self.rng.normal(size=outputs)
        return self.add(
            Operation("linear", (k,), outputs, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
        )

    def step(self, name: str) -> int:
        k = self.any()
        size = self.operations[k].size
        if name == "constant":
            return self.constant(int(self.rng.choice([1, size])))
        if name == "linear":
            return self.linear(k, int(self.rng.integers(1, 40)))
        if name == "take":
            count = int(self.rng.integers(1, size + 3))
            start = int(self.rng.integers(size))
            if start + count <= size and self.rng.random() < 0.5:
                indices = tuple(range(start, start + count))
            else:
                indices = tuple(int(i) for i in self.rng.integers(0, size, count))
            return self.add(Operation("take", (k,), count, indices=indices))
        if name == "concat":
            parts = tuple(self.any() for _ in range(self.rng.integers(1, 4)))
            return self.add(Operation("concat", parts, sum(self.operations[i].size for i in parts)))
        if name in REDUCTIONS:
            return self.add(Operation(name, (k,), 1))
        if name in UNARY:
            return self.add(Operation(name, (self.positive(k) if name in POSITIVE else k,), size))
        return self.entrywise(name, k, size)

    def entrywise(self, name: str, k: int, size: int) -> int:
        if name == "select":
            condition = self.add(Operation("greater", (k, self.any(size)), size))
            return self.add(Operation("select", (condition, self.any(size), self.any(size)), size))
        other = self.any(size)
        if name == "divide":
            other = self.positive(other)
        if name == "power":
            k = self.positive(k)
        pair = (k, other) if self.rng.random() < 0.5 or name in ("divide", "power") else (other, k)
        return self.add(Operation(name, pair, size))


def random_program(seed: int, operations: int = 40) -> Program:
    """A program whose action is drawn from all that it computes; what that does not need stays in it."""
    rng = np.random.default_rng(seed)
    builder = _Builder(rng, int(rng.integers(1, 20)))
    for _ in range(operations):
        builder.step(str(rng.choice(ALL)))
    parts = tuple(range(1, len(builder.operations), 3))
    whole = builder.add(Operation("concat", parts, sum(builder.operations[k].size for k in parts)))
    builder.linear(whole, 1)
    last = builder.step(str(rng.choice([name for name in ALL if name not in ("constant", *REDUCTIONS)])))
    return tuple(builder.operations[: last + 1])
