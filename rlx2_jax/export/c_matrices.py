"""Matrices of `linear` operations as arrays of C, and the loops that multiply by them.

A row is an output: the sum of `x[index[n]] * value[n]`, in ascending order of inputs, then times the row's scale where
values are int8, then plus the bias. A sparse matrix is held in compressed rows (CSR): how many links each row has
(`count`, whose running sum others store, which takes more), and of each link its input (`index`) and its `value`.
Integers are of the smallest type that fits. A matrix for which that takes no less memory than its zeros is held dense,
by input, so that compilers can compute several outputs at a time; the order of each sum is the same.

An int8 row is `scale * value`, with the largest weight at 127.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rlx2_jax.export.program import Array, Operation, Program

UNSIGNED = (np.uint8, np.uint16, np.uint32)

_SPARSE = """\
    for (uint32_t j = 0; j < outputs; j++) {
        float sum = 0.0f;
        for (uint32_t n = count[j]; n > 0; n--) {
            sum += x[*index++] * VALUE;
        }
        y[j] = sumSCALE + bias[j];
    }
"""

_DENSE = """\
    for (uint32_t j = 0; j < outputs; j++) {
        y[j] = 0.0f;
    }
    for (uint32_t i = 0; i < inputs; i++) {
        for (uint32_t j = 0; j < outputs; j++) {
            y[j] += x[i] * VALUE;
        }
    }
    for (uint32_t j = 0; j < outputs; j++) {
        y[j] = y[j]SCALE + bias[j];
    }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix as it is stored."""

    values: Array
    """Float32 or int8: of the links row by row, or, where it is dense, `[in * out]`."""
    scale: Array | None
    """Of each row, where values are int8: `[out]` float32."""
    counts: Array | None
    """Links of each row, unless it is dense: `[out]`."""
    indices: Array | None
    """Input of each link, unless it is dense."""

    @property
    def sparse(self) -> bool:
        """Whether links alone are stored."""
        return self.counts is not None

    @property
    def kernel(self) -> str:
        """Name of the C function that multiplies by it."""
        form = ("sparse", _short(self.counts), _short(self.indices)) if self.sparse else ("dense",)
        return "_".join((*form, _short(self.values)))

    def arrays(self) -> dict[str, Array]:
        """What is stored, by the names that `kernel` has for it."""
        stored = {"value": self.values, "scale": self.scale, "count": self.counts, "index": self.indices}
        return {name: array for name, array in stored.items() if array is not None}


def store(weight: Array, *, int8: bool) -> Matrix:
    """A matrix `[in, out]` in the form that takes least memory."""
    weight, scale = quantise(weight) if int8 else (weight.astype(np.float32), None)
    rows = weight.T
    present = rows != 0
    indices, counts = smallest(np.nonzero(present)[1]), smallest(present.sum(1))
    values = rows[present]
    if values.nbytes + indices.nbytes + counts.nbytes < weight.nbytes:
        return Matrix(values, scale, counts, indices)
    return Matrix(weight.reshape(-1), scale, None, None)


def quantise(weight: Array) -> tuple[Array, Array]:
    """Int8 values `[in, out]` and the scale `[out]` of each output; a value is off by half its scale at most."""
    scale = (np.abs(weight).max(0).astype(np.float64) / 127).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def quantised(program: Program) -> Program:
    """The program that int8 weights compute."""

    def rounded(operation: Operation) -> Operation:
        if operation.weight is None:
            return operation
        values, scale = quantise(operation.weight)
        return dataclasses.replace(operation, weight=values * scale)

    return tuple(rounded(operation) for operation in program)


def kernel(matrix: Matrix) -> str:
    """The C function that multiplies by a matrix, and by all that are stored in the same types."""
    arrays = [f"const {ctype(array)} *{name}" for name, array in matrix.arrays().items()]
    parameters = ", ".join((*arrays, "const float *bias", *["uint32_t inputs"][matrix.sparse :]))
    value, scale = ("*value++", "") if matrix.scale is None else ("(float)*value++", " * scale[j]")
    loops = (_SPARSE if matrix.sparse else _DENSE).replace("VALUE", value).replace("SCALE", scale)
    return f"""\
static void {matrix.kernel}(
    const float *restrict x, float *restrict y, uint32_t outputs, {parameters})
{{
{loops}}}
"""


def ctype(array: Array) -> str:
    """The type of an array's entries in C."""
    return "float" if array.dtype == np.float32 else f"{array.dtype}_t"


def _short(array: Array | None) -> str:
    assert array is not None
    return ctype(array).removesuffix("_t")


def smallest(numbers: Array) -> Array:
    """Whole numbers, none below 0, in the smallest type that holds them."""
    largest = numbers.max(initial=0)
    return numbers.astype(next(kind for kind in UNSIGNED if largest <= np.iinfo(kind).max))
