"""What sparse training costs: an update between events beside the dense optimiser's, and an event, in one process.

  python experiments/benchmark_sparse.py                                 three perceptrons of up to 10 million weights
  python experiments/benchmark_sparse.py --sizes=10 --seconds=30

  dense    Adam alone, as a program that knows of no sparsity
  static   `rlx2_jax.sparse.static` around it
  rigl     `rlx2_jax.sparse.rigl` around it, no event due
  instead  the same, whose events take the place of the optimiser's step, as in the paper

An `update` is the optimiser's update and its application to the parameters, in one program; a `step` is that with the
loss and its gradient on a batch before it. Contestants take turns, and what is compared is what one took with what
dense took in the same round, so that a busy machine slows all alike. An event is the difference that RigL's makes to an
update, and `rewire` is the event alone.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from rlx2_jax import sparse
from rlx2_jax.analysis import benchmarks
from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files, provenance
from rlx2_jax.runtime import limits

SIZES = flags.DEFINE_list("sizes", ["0.07", "1", "10"], "millions of weights of the perceptrons")
SECONDS = flags.DEFINE_float("seconds", 20.0, "time to spend per size and kind of measurement, compilation apart")
SPARSITY = flags.DEFINE_float("sparsity", 0.9, "of every matrix")
BATCH = flags.DEFINE_integer("batch", 256, "samples of a step's batch")
OUTPUT = command_line.define_path("output", "benchmark_sparse.json", "JSON file to write")

INPUTS, OUTPUTS = 64, 16
FAR = 2_000_000_000
"""A step that no run comes to."""

Tree = Any
Call = Callable[[], Any]


def main(argv: Sequence[str]) -> int | None:
    """Measure, print, write."""
    del argv
    if not 0 <= SPARSITY.value < 1 or BATCH.value < 1:
        raise ConfigError("use a sparsity in [0, 1) and a batch of 1 or more.")
    shapes = [shape(text) for text in SIZES.value]
    path: Path = OUTPUT.value
    command_line.check_output(path, OUTPUT.name, (".json",))
    path.parent.mkdir(parents=True, exist_ok=True)
    threads, before = len(limits.cores()), os.getloadavg()[0]
    print(f"{provenance.device()}, {threads} threads, jax {jax.__version__}, sparsity {SPARSITY.value:g}")
    print(
        f"{'weights':>9} {'what':<8} {'contestant':<8} {'ms (quartiles)':>24} {'over dense (quartiles)':>26} {'n':>6}"
    )
    results: list[dict[str, Any]] = []
    for sides in shapes:
        for measured in (race_updates(sides), race_steps(sides), race_events(sides)):
            results.extend(measured)
            for line in measured:
                print(_line(line), flush=True)
    load = {"before": before, "after": os.getloadavg()[0]}
    settings = {"threads": threads, "sparsity": SPARSITY.value, "batch": BATCH.value, "load": load}
    files.write_json(path, provenance.about() | settings | {"results": results})
    print(f"load of the machine {load['before']:.1f} before and {load['after']:.1f} after, this process included then")
    print(f"wrote {path}")
    return 0


def shape(millions: str) -> tuple[int, ...]:
    """Sides of a perceptron with three hidden layers and about so many millions of weights."""
    try:
        weights = min(max(1e6 * float(millions), 0), 1e9)
    except ValueError:
        weights = 0
    ends = INPUTS + OUTPUTS
    hidden = (-ends + math.sqrt(ends**2 + 8 * weights)) / 4
    if hidden < 1:
        raise ConfigError("sizes: use millions of weights, 0.001 or more.")
    return (INPUTS, *[round(hidden)] * 3, OUTPUTS)


def parameters(sides: tuple[int, ...]) -> Tree:
    """A fresh perceptron."""
    keys = jax.random.split(jax.random.PRNGKey(0), len(sides))
    layers = zip(keys, itertools.pairwise(sides), strict=False)
    return [(jax.random.normal(key, (a, b)) / math.sqrt(a), jnp.zeros(b)) for key, (a, b) in layers]


def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error."""
    for i, (kernel, bias) in enumerate(params):
        x = x @ kernel + bias
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return jnp.mean((x - y) ** 2)


def contestants() -> dict[str, optax.GradientTransformation]:
    """Optimisers by name; none of them meets an event."""
    adam, density = functools.partial(optax.adam, 1e-3), sparse.uniform(SPARSITY.value)
    moving = functools.partial(sparse.rigl, density=density, every=FAR // 2, until=FAR)
    return {
        "dense": adam(),
        "static": sparse.static(adam(), density=density),
        "rigl": moving(adam()),
        "instead": moving(adam(), instead=True),
    }


def begin(tx: optax.GradientTransformation, sides: tuple[int, ...]) -> tuple[Tree, Any]:
    """Parameters of its own, and its state."""
    try:
        return sparse.init(tx, parameters(sides))
    except sparse.SparseError:
        return parameters(sides), tx.init(parameters(sides))


def race_updates(sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """Updates alone."""

    def call(tx: optax.GradientTransformation) -> Call:
        def update(params: Tree, state: Any) -> tuple[Tree, Any]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return _repeated(update, begin(tx, sides))

    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.PRNGKey(1), x.shape), parameters(sides))
    return _compared("update", sides, {name: call(tx) for name, tx in contestants().items()})


def race_steps(sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """Updates with the gradients they go along."""

    def call(tx: optax.GradientTransformation) -> Call:
        def step(params: Tree, state: Any) -> tuple[Tree, Any]:
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        return _repeated(step, begin(tx, sides))

    x = jax.random.normal(jax.random.PRNGKey(2), (BATCH.value, INPUTS))
    y = jax.random.normal(jax.random.PRNGKey(3), (BATCH.value, OUTPUTS))
    return _compared("step", sides, {name: call(tx) for name, tx in contestants().items()})


def race_events(sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """Updates with an event and without, and the event alone."""
    density = sparse.uniform(SPARSITY.value)
    method = sparse.methods.rigl(density=density, until=FAR)
    tx = sparse.sparsify(optax.adam(1e-3), method)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.PRNGKey(1), x.shape), parameters(sides))

    def call(due: bool) -> Call:
        def update(params: Tree, state: Any) -> tuple[Tree, Any]:
            updates, state = tx.update(gradients, state, params, event=due)
            return optax.apply_updates(params, updates), state

        return _repeated(update, begin(tx, sides))

    def rewire(params: Tree, masks: Any) -> tuple[Tree, Any]:
        return sparse.rewire(method, params, masks, gradients, key=jax.random.PRNGKey(0), step=1)[:2]

    params, state = begin(tx, sides)
    calls = {"without": call(False), "with": call(True), "rewire": _repeated(rewire, (params, sparse.masks_of(state)))}
    times = benchmarks.in_turns(calls, SECONDS.value)
    event = [max(a - b, 0) for a, b in zip(times["with"], times["without"], strict=True)]
    return [_result("event", sides, "in rigl", event), _result("event", sides, "rewire", times["rewire"])]


def _repeated(function: Callable[..., Any], first: tuple[Any, Any]) -> Call:
    """A call that goes on from where it stopped, in the same memory; compiled, and made once."""
    program, carry = jax.jit(function, donate_argnums=(0, 1)), [first]

    def call() -> None:
        carry[0] = jax.block_until_ready(program(*carry[0]))

    call()
    return call


def _compared(what: str, sides: tuple[int, ...], calls: dict[str, Call]) -> list[dict[str, Any]]:
    times = benchmarks.in_turns(calls, SECONDS.value)
    return [_result(what, sides, name, seconds, times["dense"]) for name, seconds in times.items()]


def _result(
    what: str, sides: tuple[int, ...], name: str, seconds: Sequence[float], dense: Sequence[float] | None = None
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "weights": sum(a * b for a, b in itertools.pairwise(sides)),
        "what": what,
        "contestant": name,
        "seconds": statistics.median(seconds),
        "seconds_quartiles": benchmarks.quartiles(seconds),
        "n": len(seconds),
    }
    if dense is not None:
        ratios = [a / b for a, b in zip(seconds, dense, strict=True)]
        result |= {"over_dense": statistics.median(ratios), "over_dense_quartiles": benchmarks.quartiles(ratios)}
    return result


def _line(result: dict[str, Any]) -> str:
    low, high = (1e3 * q for q in result["seconds_quartiles"])
    ratio = ""
    if "over_dense" in result:
        ratio = "{:.3f} ({:.3f}-{:.3f})".format(result["over_dense"], *result["over_dense_quartiles"])
    milliseconds = f"{1e3 * result['seconds']:.3f} ({low:.3f}-{high:.3f})"
    head = f"{result['weights']:>9} {result['what']:<8} {result['contestant']:<8}"
    return f"{head} {milliseconds:>24} {ratio:>26} {result['n']:>6}"


if __name__ == "__main__":
    command_line.run(main)
