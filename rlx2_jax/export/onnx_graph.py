"""A program as an ONNX model, for onnxruntime and whatever else reads ONNX.

The model takes `observation` `[batch, O]` and gives `action` `[batch, A]`, both float32, for any batch. It needs the
operators of opset 18, that of ONNX 1.13. Weights are dense initialisers: runtimes have no sparse product that is
faster. Its metadata are JSON texts: `observation_names`, `action_names`, `action_limits`, and a text for each fact of
the policy's origin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlx2_jax import __version__
from rlx2_jax.errors import ConfigError
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import Array, Operation, Program

OPSET = 18
"""Version of ONNX's operators."""

IR_VERSION = 8
"""Version of ONNX's file format that came with them."""

MISSING = "format=onnx needs the packages onnx and onnxruntime: pip install 'rlx2-jax[onnx]'."
"""What is the matter, and the mend."""

_SAME = {
    "relu": "Relu",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "negative": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "sin": "Sin",
    "cos": "Cos",
    "power": "Pow",
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
}
"""Operations that ONNX has one of its own for."""

_COMPARISONS = {"greater": "Greater", "greater_equal": "GreaterOrEqual", "equal": "Equal"}

_REDUCTIONS = {"sum": "ReduceSum", "largest": "ReduceMax", "smallest": "ReduceMin"}


def write(program: Program, description: Description) -> bytes:
    """The bytes of a `.onnx` file, checked by the onnx package.

    Args:
      program: of the policy.
      description: of it.

    Raises:
      ConfigError: the onnx package is missing.
    """
    onnx = _package()
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = _Graph(onnx, program)
    value = lambda name, size: helper.make_tensor_value_info(name, float32, ["batch", size])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [value("observation", program[0].size)],
            [value("action", program[-1].size)],
            graph.initializers,
            doc_string=f"The noise-free action of {description.name}, in [-1, 1].",
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rlx2_jax",
        producer_version=__version__,
        doc_string=f"{description.name}: observation [batch, {program[0].size}] to action [batch, {program[-1].size}].",
    )
    helper.set_model_props(
        model,
        {
            **description.provenance,
            "name": description.name,
            "observation_names": json.dumps(description.observation_names),
            "action_names": json.dumps(description.action_names),
            "action_limits": json.dumps([*zip(description.action_low, description.action_high, strict=True)]),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def load(data: bytes) -> Callable[[Array], Array]:
    """A function of observations `[batch, O]` that runs such a file in onnxruntime, on one thread.

    Raises:
      ConfigError: onnxruntime is missing, or has no use for the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(MISSING) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # It has several of its own, of no common kind.
        raise ConfigError(f"onnxruntime has no use for this file ({str(error)[:200]}); write it again.") from None
    return lambda observation: session.run(["action"], {"observation": np.asarray(observation, np.float32)})[0]


def _package() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise ConfigError(MISSING) from None
    return onnx


class _Graph:
    """Nodes and initialisers that compute a program; value k is called `value_k`, and is `[batch, size]`.

    Constants are `[1, size]`, and repeated only where something else than broadcasting reads them.
    """

    def __init__(self, onnx: Any, program: Program):
        """Write all of it."""
        self.onnx, self.program = onnx, program
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.batched: list[bool] = []
        last = len(program) - 1
        for k, operation in enumerate(program):
            self.batched.append(operation.name == "input" or any(self.batched[i] for i in operation.inputs))
            if operation.name != "input":
                self.operation(k, operation)
        self.node("Identity", [self.whole(last)], "action")

    def operation(self, k: int, operation: Operation) -> None:
        """Write one operation."""
        name, out = operation.name, self.value(k)
        inputs = [self.value(i) for i in operation.inputs]
        if operation.data is not None:
            self.initializers.append(self.tensor(out, operation.data[None]))
        elif name == "linear":
            assert operation.weight is not None and operation.bias is not None
            weight = self.initial(f"weight_{k}", operation.weight)
            self.node("Gemm", [*inputs, weight, self.initial(f"bias_{k}", operation.bias)], out)
        elif name == "take":
            indices = self.initial(f"indices_{k}", np.asarray(operation.indices, np.int64), np.int64)
            self.node("Gather", [*inputs, indices], out, axis=1)
        elif name == "concat":
            self.node("Concat", [self.whole(i) for i in operation.inputs], out, axis=1)
        elif name == "select":
            condition = self.node("Cast", inputs[:1], f"{out}_condition", to=self.onnx.TensorProto.BOOL)
            self.node("Where", [condition, *inputs[1:]], out)
        elif name in _REDUCTIONS:
            self.node(_REDUCTIONS[name], [*inputs, self.integers("axes", [1])], out, keepdims=1)
        elif name in _COMPARISONS:
            truth = self.node(_COMPARISONS[name], inputs, f"{out}_truth")
            self.node("Cast", [truth], out, to=self.onnx.TensorProto.FLOAT)
        elif name == "square":
            self.node("Mul", inputs * 2, out)
        elif name == "rsqrt":
            self.node("Reciprocal", [self.node("Sqrt", inputs, f"{out}_root")], out)
        elif name == "expm1":
            self.node("Sub", [self.node("Exp", inputs, f"{out}_exp"), self.one()], out)
        elif name == "log1p":
            self.node("Log", [self.node("Add", [*inputs, self.one()], f"{out}_more")], out)
        else:
            self.node(_SAME[name], inputs, out)

    def value(self, k: int) -> str:
        """The name of a value."""
        return "observation" if k == 0 else f"value_{k}"

    def whole(self, k: int) -> str:
        """The name of a value that has a row for each of the batch."""
        name = self.value(k)
        if self.batched[k]:
            return name
        if not any(node.output[0] == f"{name}_whole" for node in self.nodes):
            batch = self.node("Shape", ["observation"], f"{name}_batch", start=0, end=1)
            size = self.integers(f"{name}_size", [self.program[k].size])
            shape = self.node("Concat", [batch, size], f"{name}_shape", axis=0)
            self.node("Expand", [name, shape], f"{name}_whole")
        return f"{name}_whole"

    def one(self) -> str:
        """The name of the number 1."""
        return self.initial("one", np.ones((1, 1)))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """The name of a constant of whole numbers."""
        return self.initial(name, np.asarray(values), np.int64)

    def initial(self, name: str, values: Array, dtype: type = np.float32) -> str:
        """Add an initialiser, if there is none of this name yet."""
        if not any(held.name == name for held in self.initializers):
            self.initializers.append(self.tensor(name, values, dtype))
        return name

    def tensor(self, name: str, values: Array, dtype: type = np.float32) -> Any:
        """An array as ONNX has it."""
        return self.onnx.numpy_helper.from_array(np.ascontiguousarray(values, dtype), name)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node; its output's name."""
        self.nodes.append(self.onnx.helper.make_node(kind, [*inputs], [output], name=output, **attributes))
        return output
