"""Runs the policy in the archive beside this file; needs NumPy alone.

import policy
act = policy.load("policy_numpy.npz")
action = act(observation)  # [..., O] to [..., A] in [-1, 1]
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

OPERATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sum": lambda x: x.sum(-1, keepdims=True),
    "largest": lambda x: x.max(-1, keepdims=True),
    "smallest": lambda x: x.min(-1, keepdims=True),
    "concat": lambda *parts: np.concatenate(parts, -1),
    "select": lambda condition, x, y: np.where(condition != 0, x, y),
}  # And those that NumPy has by the same name.


def load(path: Any) -> Callable[[Any], Any]:
    """The policy's function; names of its inputs and outputs, and where it comes from, are in the archive's `about`."""
    file = np.load(path)
    steps = json.loads(str(file["about"]))["program"]
    functions = [_function(file, k, step) for k, step in enumerate(steps)]

    def act(observation: Any) -> Any:
        values = [np.asarray(observation, np.float32)]
        with np.errstate(all="ignore"):
            for step, function in zip(steps[1:], functions[1:], strict=True):
                values.append(np.asarray(function(*(values[i] for i in step["inputs"] or [0])), np.float32))
        return values[-1]

    return act


def _function(file: Any, k: int, step: dict[str, Any]) -> Any:
    part = lambda name: file[f"{k}/{name}"]
    if step["name"] == "linear":
        weight, bias = np.zeros((step["from"], step["size"]), np.float32), part("bias")
        outputs = np.repeat(np.arange(step["size"]), np.diff(part("starts")))
        weight[part("indices"), outputs] = part("values")
        return lambda x: x @ weight + bias
    if step["name"] == "take":
        indices = part("indices")
        return lambda x: x[..., indices]
    if step["name"] == "constant":
        data = part("data")
        return lambda x: np.broadcast_to(data, (*x.shape[:-1], data.size))
    return OPERATIONS.get(step["name"]) or getattr(np, step["name"], None)
