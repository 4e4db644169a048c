"""A program's operations as statements of C, with the functions and constants that they name."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from rlx2_jax.export import c_formulas, c_layout, c_matrices
from rlx2_jax.export.c_formulas import Formula
from rlx2_jax.export.program import Array, Operation, Program


@dataclasses.dataclass(frozen=True)
class Body:
    """What stands before the function that acts, and within it, where `observation` and `action` are its arguments."""

    program: Program
    layout: c_layout.Layout
    matrices: Mapping[int, c_matrices.Matrix]
    formulas: Mapping[str, Formula]

    def text(self) -> str:
        """The statements that compute the action."""
        scratch = [f"float scratch[{self.layout.scratch}];"] if self.layout.scratch else []
        return "\n".join((*scratch, *map(self._step, self.layout.steps)))

    def definitions(self) -> Iterator[str]:
        """Functions and constants that the statements name."""
        words = set(re.findall(r"\w+", self.text()))
        formulas = (*self.formulas.values(), *c_formulas.REDUCTIONS.values())
        libm = dict.fromkeys(function for formula in formulas for function in formula.libm)
        yield "\n".join(f"float {function};" for function in libm if function.split("(")[0] in words)
        helpers = dict.fromkeys((formula.text.split("(")[0], formula.helper) for formula in formulas if formula.helper)
        yield from (helper for name, helper in helpers if name in words)
        kernels = {matrix.kernel: c_matrices.kernel(matrix) for matrix in self.matrices.values()}
        yield from (kernel for name, kernel in kernels.items() if name in words)
        arrays = (named for k in range(len(self.program)) for named in self._arrays(k).items())
        yield "\n".join(definition(name, array) for name, array in arrays if name in words)

    def _arrays(self, k: int) -> dict[str, Array]:
        """Constants of an operation, by their names."""
        operation = self.program[k]
        if operation.name == "constant":
            return {f"constant_{k}": np.asarray(operation.data, np.float32)}
        if operation.name == "take":
            return {f"index_{k}": c_matrices.smallest(np.array(operation.indices))}
        if operation.bias is not None:
            arrays = {**self.matrices[k].arrays(), "bias": operation.bias.astype(np.float32)}
            return {f"{name}_{k}": array for name, array in arrays.items()}
        return {}

    def _literal(self, k: int) -> str | None:
        """A constant whose entries are equal, as a number."""
        data = self.program[k].data
        return None if data is None or (data != data[0]).any() else literal(data[0])

    def _step(self, k: int) -> str:
        """The statements that compute a value that has memory."""
        operation, target = self.program[k], self._pointer(k)
        place = _sum(self.layout.offsets.get(k, 0), "scratch")
        declared = "" if target == "action" else f"float *const {target} = {place};\n"
        if operation.name == "linear":
            return declared + self._multiplication(k, target)
        if operation.name == "concat":
            return declared + self._concatenation(operation, target)
        if operation.name in c_formulas.REDUCTIONS:
            return declared + self._reduction(operation, target)
        return declared + _loop(operation.size, lambda i: f"{target}[{i}] = {self._formula(k, i)};")

    def _multiplication(self, k: int, target: str) -> str:
        operation, matrix = self.program[k], self.matrices[k]
        arguments = [self._pointer(operation.inputs[0]), target, str(operation.size)]
        arguments += [f"{name}_{k}" for name in (*matrix.arrays(), "bias")]
        arguments += [] if matrix.sparse else [str(self.program[operation.inputs[0]].size)]
        return f"{matrix.kernel}({', '.join(arguments)});"

    def _concatenation(self, operation: Operation, target: str) -> str:
        loops, start = [], 0
        for part in operation.inputs:
            line = _copy(target, start, self._reader(part))
            loops.append(_loop(self.program[part].size, line))
            start += self.program[part].size
        return "\n".join(loops)

    def _reduction(self, operation: Operation, target: str) -> str:
        entry = self._reader(operation.inputs[0])
        first = "0.0f" if operation.name == "sum" else entry("0")
        combine = c_formulas.REDUCTIONS[operation.name].text
        loop = _loop(
            self.program[operation.inputs[0]].size, lambda i: f"result = {combine.format('result', entry(i))};"
        )
        inner = f"float result = {first};\n{loop}\n{target}[0] = result;"
        return f"{{\n{textwrap.indent(inner, '    ')}\n}}"

    def _reader(self, k: int) -> Callable[[str], str]:
        return lambda i: self._entry(k, i)

    def _pointer(self, k: int) -> str:
        """Where a value lies."""
        if k == self.layout.steps[-1]:
            return "action"
        return {"input": "observation", "constant": f"constant_{k}"}.get(self.program[k].name, f"v{k}")

    def _entry(self, k: int, i: str) -> str:
        """Entry i of a value; its only one, where it has one."""
        if (same := self._literal(k)) is not None:
            return same
        i = "0" if self.program[k].size == 1 else i
        return self._formula(k, i) if k in self.layout.expanded else f"{self._pointer(k)}[{i}]"

    def _formula(self, k: int, i: str) -> str:
        """What makes entry i of a value."""
        operation = self.program[k]
        if operation.name in ("input", "constant"):  # The action is the observation, or never changes.
            return self._literal(k) or f"{'observation' if operation.name == 'input' else f'constant_{k}'}[{i}]"
        if operation.name == "take":
            start = _start(operation)
            return self._entry(operation.inputs[0], f"index_{k}[{i}]" if start is None else _sum(start, i))
        return self.formulas[operation.name].text.format(*(self._entry(j, i) for j in operation.inputs))


def _start(operation: Operation) -> int | None:
    """The first index of a `take`, if the others follow one after another."""
    start = operation.indices[0]
    return start if operation.indices == tuple(range(start, start + operation.size)) else None


def _sum(start: int, i: str) -> str:
    """An index as an expression."""
    return str(start + int(i)) if i.isdecimal() else f"{i} + {start}" if start else i


def _copy(target: str, start: int, entry: Callable[[str], str]) -> Callable[[str], str]:
    return lambda i: f"{target}[{_sum(start, i)}] = {entry(i)};"


def _loop(size: int, line: Callable[[str], str]) -> str:
    """A statement for each i below `size`."""
    if size == 1:
        return line("0")
    return f"for (uint32_t i = 0; i < {size}; i++) {{\n    {line('i')}\n}}"


def literal(value: np.float32) -> str:
    """A float32 in the fewest digits that are exact."""
    return f"({value!s}f)" if np.signbit(value) else f"{value!s}f"


def definition(name: str, values: Array, static: str = "static ") -> str:
    """Definition of a constant array; of one zero, where there are no values."""
    numbers = [f"{v!s}f" if values.dtype == np.float32 else str(v) for v in values] or ["0"]
    lines = textwrap.fill(", ".join(numbers), 116, initial_indent="    ", subsequent_indent="    ")
    return f"{static}const {c_matrices.ctype(values)} {name}[{len(numbers)}] = {{\n{lines}\n}};"
