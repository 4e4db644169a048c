"""A policy's program, read off the jaxpr of its actions: whatever its network, if that is made of usual operations.

Everything that does not depend on the observation is computed here. What does is a vector; its entries stand in the
order of rows where JAX has more axes, and a vector of length 1 may stand for equal entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.errors import ConfigError
from rlx2_jax.export.program import Array, Operation, Program, reached
from rlx2_jax.policies import Policy

Shape = tuple[int, ...]
"""Of an array."""


class Traced(NamedTuple):
    """A value that depends on the observation."""

    place: int
    """Of the operation that makes it."""
    shape: Shape
    """As JAX has it; with as many entries as the operation makes, or it makes one."""


Value = Traced | Array
"""What a traced operation takes: known before, or traced."""


def trace(policy: Policy) -> Program:
    """The noise-free action of a policy as a program.

    Raises:
      ConfigError: its network has an operation that there is none for.
    """
    observations, _ = policy.sizes
    return program_of(policy.act, observations)


def program_of(function: Callable[[jax.Array], jax.Array], inputs: int) -> Program:
    """A function `[inputs]` to `[outputs]` as a program.

    Raises:
      ConfigError: as of `trace`.
    """
    closed = jax.make_jaxpr(function)(jnp.zeros(inputs))
    tracer = _Tracer([Operation("input", (), inputs)])
    (result,) = tracer.run(closed.jaxpr, [np.asarray(const) for const in closed.consts], [Traced(0, (inputs,))])
    whole = tracer.whole(result)
    if whole.place != len(tracer.operations) - 1:
        whole = tracer.emit("take", [whole], whole.shape, indices=tuple(range(_size(whole.shape))))
    return _without_unused(_with_biases(tuple(tracer.operations)))


class _Tracer:
    """Operations so far, and how each primitive adds to them."""

    def __init__(self, operations: list[Operation]):
        """Begin with some."""
        self.operations = operations

    def run(self, jaxpr: Any, consts: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
        """The values that a jaxpr returns."""
        known: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
        read = lambda var: np.asarray(var.val) if hasattr(var, "val") else known[var]
        for equation in jaxpr.eqns:
            results = self.apply(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def apply(self, equation: Any, inputs: list[Value]) -> list[Value]:
        """The values that one equation makes."""
        name, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is not None and name in _CALLS:
            consts = [np.asarray(const) for const in getattr(inner, "consts", ())]
            return self.run(getattr(inner, "jaxpr", inner), consts, inputs)
        if not any(isinstance(x, Traced) for x in inputs):
            results = equation.primitive.bind(*inputs, **params)
            return [np.asarray(x) for x in (results if equation.primitive.multiple_results else [results])]
        shapes = [tuple(var.aval.shape) for var in equation.outvars]
        if name == "split":
            return self._split(inputs[0], params, shapes)
        if name == "convert_element_type":
            return [self._convert(inputs[0], equation.invars[0].aval.dtype, params["new_dtype"], shapes[0])]
        if name not in _HANDLERS:
            raise _unknown(name)
        return [_HANDLERS[name](self, inputs, params, shapes[0])]

    def emit(self, name: str, inputs: Sequence[Value], shape: Shape, size: int | None = None, **more: Any) -> Traced:
        """Add an operation."""
        places = tuple(self.traced(x).place for x in inputs)
        self.operations.append(Operation(name, places, _size(shape) if size is None else size, **more))
        return Traced(len(self.operations) - 1, shape)

    def traced(self, value: Value) -> Traced:
        """A value as the result of an operation."""
        if isinstance(value, Traced):
            return value
        data = np.ravel(value).astype(np.float32)
        data = data[:1] if data.size and (data == data[0]).all() else data
        return self.emit("constant", [], value.shape, data.size, data=data)

    def whole(self, value: Value) -> Traced:
        """A value with all its entries."""
        value, size = self.traced(value), _size(value.shape)
        if self.operations[value.place].size == size:
            return value
        return self.emit("take", [value], value.shape, indices=(0,) * size)

    def entries(self, inputs: Sequence[Value]) -> int:
        """How many entries an operation makes of these, entry by entry."""
        return max(self.operations[self.traced(x).place].size for x in inputs)

    def _convert(self, value: Value, old: Any, new: Any, shape: Shape) -> Value:
        """The value as another type: here all are float32, and booleans 1 and 0."""
        old, new, boolean = jnp.dtype(old), jnp.dtype(new), jnp.dtype(bool)
        if old in (new, boolean) or _float_bits(new) >= _float_bits(jnp.float32):
            return _same_entries(self, [value], {}, shape)
        if new == boolean:
            return _differs(self, [value, np.zeros((), np.float32)], {}, shape)
        raise _unknown(f"a conversion from {old} to {new}")

    def _split(self, value: Value, params: Any, shapes: list[Shape]) -> list[Value]:
        start, parts = 0, list[Value]()
        for shape in shapes:
            limits = list(shape)
            offset = [0] * len(shape)
            offset[params["axis"]] = start
            limits[params["axis"]] += start
            parts.append(_slice(self, [value], {"start_indices": offset, "limit_indices": limits}, shape))
            start += shape[params["axis"]]
        return parts


Handler = Callable[[_Tracer, list[Value], Any, Shape], Value]
"""Makes an operation of JAX one of a program."""


def _elementwise(name: str, *, swapped: bool = False) -> Handler:
    def handle(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
        del params
        inputs = [tracer.traced(_fitted(x, shape)) for x in (inputs[::-1] if swapped else inputs)]
        size = tracer.entries(inputs)
        if size not in (1, _size(shape)):
            raise _unknown("repeating a vector")
        return tracer.emit(name, inputs, shape, size)

    return handle


def _fitted(value: Value, shape: Shape) -> Value:
    """A constant with the axes of what it meets; an axis of length 1 of a traced value means the same."""
    return value if isinstance(value, Traced) else np.broadcast_to(value, shape)


def _max(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    zero = [not isinstance(x, Traced) and not np.any(x) for x in inputs]
    if any(zero):
        return _elementwise("relu")(tracer, [inputs[zero.index(False)]], params, shape)
    return _elementwise("maximum")(tracer, inputs, params, shape)


def _integer_power(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    if params["y"] == 2:
        return _elementwise("square")(tracer, inputs, params, shape)
    return _elementwise("power")(tracer, [inputs[0], np.asarray(params["y"], np.float32)], params, shape)


def _not(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    return _elementwise("subtract")(tracer, [np.ones((), np.float32), *inputs], params, shape)


def _differs(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    return _not(tracer, [_elementwise("equal")(tracer, inputs, params, shape)], params, shape)


def _select(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    if len(inputs) != 3:
        raise _unknown("select_n of more than two")
    condition, where_false, where_true = inputs
    return _elementwise("select")(tracer, [condition, where_true, where_false], params, shape)


def _reduction(name: str) -> Handler:
    def handle(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
        (value,) = inputs
        kept = [length for axis, length in enumerate(value.shape) if axis not in params["axes"]]
        if _size(kept) != 1:
            raise _unknown(f"a {name} over one of several axes")
        return tracer.emit(name, [tracer.whole(value)], shape)

    return handle


def _dot_general(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    contract, (batch, _) = params["dimension_numbers"]
    first = isinstance(inputs[0], Traced)
    value, weight = inputs if first else inputs[::-1]
    axes, rows = contract if first else contract[::-1]
    if isinstance(weight, Traced) or batch:
        raise _unknown("a product of two things that both depend on the observation")
    if _size([value.shape[axis] for axis in axes]) != _size(value.shape) or len(axes) != 1 or weight.ndim > 2:
        raise _unknown("a product over more than one axis")
    matrix = np.moveaxis(np.asarray(weight, np.float32), rows[0], 0).reshape(value.shape[axes[0]], -1)
    return tracer.emit("linear", [tracer.whole(value)], shape, weight=matrix, bias=np.zeros(_size(shape), np.float32))


def _same_entries(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    """The value with other axes, or with one entry repeated."""
    del params
    value = tracer.traced(inputs[0])
    if tracer.operations[value.place].size not in (1, _size(shape)):
        raise _unknown("repeating a vector")
    return Traced(value.place, shape)


def _slice(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    value = tracer.whole(inputs[0])
    steps = params.get("strides") or (1,) * len(shape)
    ranges = tuple(map(slice, params["start_indices"], params["limit_indices"], steps))
    places = np.arange(_size(value.shape)).reshape(value.shape)[ranges]
    return tracer.emit("take", [value], shape, indices=tuple(int(i) for i in places.ravel()))


def _reverse(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    value = tracer.whole(inputs[0])
    places = np.flip(np.arange(_size(shape)).reshape(shape), params["dimensions"])
    return tracer.emit("take", [value], shape, indices=tuple(int(i) for i in places.ravel()))


def _concatenate(tracer: _Tracer, inputs: list[Value], params: Any, shape: Shape) -> Value:
    if _size(shape[: params["dimension"]]) != 1:
        raise _unknown("concatenating along an inner axis")
    return tracer.emit("concat", [tracer.whole(x) for x in inputs], shape)


_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
"""Primitives that stand for what is inside them."""

_SAME_NAME = (
    *("tanh", "exp", "expm1", "log", "log1p", "logistic", "sqrt", "rsqrt", "square", "abs", "sign", "sin", "cos"),
    "add",
)
"""Primitives that are called alike here."""

_OTHER_NAME = {
    "sub": "subtract",
    "mul": "multiply",
    "div": "divide",
    "neg": "negative",
    "pow": "power",
    "min": "minimum",
    "add_any": "add",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "and": "multiply",
    "or": "maximum",
}
"""Primitives, and what they are called here. Booleans are 1 and 0, so that `and` is a product."""

_HANDLERS: dict[str, Handler] = {
    **{name: _elementwise(name) for name in _SAME_NAME},
    **{name: _elementwise(own) for name, own in _OTHER_NAME.items()},
    **dict.fromkeys(("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "copy_p"), _same_entries),
    "stop_gradient": _same_entries,
    "lt": _elementwise("greater", swapped=True),
    "le": _elementwise("greater_equal", swapped=True),
    "ne": _differs,
    "not": _not,
    "max": _max,
    "integer_pow": _integer_power,
    "select_n": _select,
    "reduce_sum": _reduction("sum"),
    "reduce_max": _reduction("largest"),
    "reduce_min": _reduction("smallest"),
    "dot_general": _dot_general,
    "slice": _slice,
    "rev": _reverse,
    "concatenate": _concatenate,
}


def _unknown(what: str) -> ConfigError:
    return ConfigError(f"the network has an operation that only the format jax can hold ({what}); use --format=jax.")


def _float_bits(dtype: Any) -> int:
    """Bits of a type of floats; of others none."""
    return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 0


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _with_biases(program: Program) -> Program:
    """The program with constants that are added to a product, which nothing else reads, as its bias."""
    readers = [0] * len(program)
    for operation in program:
        for i in operation.inputs:
            readers[i] += 1
    result = list(program)
    for k, operation in enumerate(program):
        if operation.name != "add":
            continue
        for i, j in (operation.inputs, operation.inputs[::-1]):
            linear, constant = result[i], result[j]
            if linear.name == "linear" and constant.data is not None and readers[i] == 1:
                if constant.size > linear.size:  # A product of one unit stands for many entries that are equal.
                    continue
                bias = np.broadcast_to(constant.data, linear.size) + linear.bias
                result[k] = Operation("linear", linear.inputs, linear.size, weight=linear.weight, bias=bias)
    return tuple(result)


def _without_unused(program: Program) -> Program:
    """The program without what its last value does not need; the input stays."""
    kept = sorted({0} | reached(program))
    place = {old: new for new, old in enumerate(kept)}
    renamed = lambda o: Operation(
        o.name, tuple(place[i] for i in o.inputs), o.size, o.data, o.weight, o.bias, o.indices
    )
    return tuple(renamed(program[k]) for k in kept)
