"""The arms of each study, as functions of how many environment steps its runs take."""

from __future__ import annotations

from collections.abc import Iterable

from paper import factors, search
from paper.factors import FACTORS
from paper.study import DENSE, SPARSITY_SETTINGS, Arm, Settings
from rlx2_jax.config import methods

_DENSE = Arm(DENSE, {"method": "dense"})


def by_method(steps: int) -> tuple[Arm, ...]:
    """Every method that is compared."""
    del steps
    return _of(methods.METHODS)


def by_weight(steps: int) -> tuple[Arm, ...]:
    """The same in the order in which runs are worth most."""
    del steps
    return _of(("rlx2", "dense", "rigl", "ss", "set", "tiny"))


def topologies(steps: int) -> tuple[Arm, ...]:
    """RLx2, and its value learning on other methods' links."""
    del steps
    value_learning = {"n_step": 3, "dynamic_buffer": True}
    return (
        _DENSE,
        *(Arm(name, {"method": name, **value_learning}) for name in ("tiny", "ss", "set")),
        Arm("rlx2", {"method": "rlx2"}),
    )


def n_steps(steps: int) -> tuple[Arm, ...]:
    """RLx2 with targets of one to five steps."""
    del steps
    return (
        _DENSE,
        *(Arm(f"{n}-step", {"method": "rlx2", "n_step": n}) for n in range(1, 6)),
    )


BUFFER_SHARES = (1 / 30, 1 / 10, 1 / 3)
"""Capacities of the fixed buffers: 100,000, 300,000 and 1 million transitions of the paper's 3 million steps."""


def buffers(steps: int) -> tuple[Arm, ...]:
    """RLx2 with a dynamic buffer, with fixed ones of `BUFFER_SHARES` of a run, and with one that holds all of it."""
    fixed = {"method": "rlx2", "dynamic_buffer": False}
    sizes = [round(share * steps) for share in BUFFER_SHARES]
    return (
        _DENSE,
        Arm("dynamic", {"method": "rlx2"}),
        *(Arm(f"fixed-{_short(size)}", {**fixed, "buffer_max": size}) for size in sizes),
        Arm("unlimited", {**fixed, "buffer_max": steps}),
    )


SPARSITIES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def sparsities(steps: int) -> tuple[Arm, ...]:
    """RLx2, RigL and static masks at each of `SPARSITIES`."""
    del steps
    return (
        _DENSE,
        *(_thinned(method, sparsity) for method in ("rlx2", "rigl", "ss") for sparsity in SPARSITIES),
    )


def frontier(steps: int) -> tuple[Arm, ...]:
    """RLx2 at each sparsity of the search's grid."""
    del steps
    return (_DENSE, *(_thinned("rlx2", sparsity) for sparsity in search.GRID))


_FIXED = {"method": "rlx2", "topology": "fixed"}
"""Without a ticket it is the mask that RLx2 begins with: that of the largest initial weights, which lie at random. One
drawn beside them would keep weights half as large as all other arms begin with, and differ in more than its links."""


def tickets(steps: int) -> tuple[Arm, ...]:
    """Masks that were found beside random ones and ones that keep moving, by reward and by imitation."""
    del steps
    winning = {**_FIXED, "ticket_weights": "initial"}
    release = {**_FIXED, "ticket_weights": "release"}
    return (
        _DENSE,
        Arm("random", _FIXED),
        Arm("winning", winning, ticket="dynamic"),
        Arm("winning-release", release, ticket="dynamic"),
        Arm("dynamic", {"method": "rlx2"}),
        Arm("clone-random", _FIXED, teacher=DENSE),
        Arm("clone-winning", winning, ticket="clone-dynamic", teacher=DENSE),
        Arm("clone-winning-release", release, ticket="clone-dynamic", teacher=DENSE),
        Arm("clone-dynamic", {"method": "rlx2"}, teacher=DENSE),
    )


def mask_quality(steps: int) -> tuple[Arm, ...]:
    """Masks that RigL and RLx2 found, trained anew with RLx2's value learning."""
    del steps
    found = {**_FIXED, "ticket_weights": "initial"}
    return (
        _DENSE,
        Arm("rigl", {"method": "rigl"}),
        Arm("rlx2", {"method": "rlx2"}),
        Arm("mask-random", _FIXED),
        Arm("mask-of-rigl", found, ticket="rigl"),
        Arm("mask-of-rlx2", found, ticket="rlx2"),
    )


def normalised(steps: int) -> tuple[Arm, ...]:
    """RLx2 and the dense agent, each with layer normalisation and without."""
    del steps
    methods_of = {DENSE: {"method": "dense"}, "rlx2": {"method": "rlx2"}}
    with_norm = {f"{name}-layernorm": {**settings, "network": "layernorm"} for name, settings in methods_of.items()}
    return tuple(Arm(name, settings) for name, settings in (methods_of | with_norm).items())


def inputs(steps: int) -> tuple[Arm, ...]:
    """What dead inputs are to tell apart: static masks and those that evolve, beside dense."""
    del steps
    return _of(("dense", "ss", "rlx2"))


DELAY_SHARES = (0, 0.1, 0.3)
"""When three-step targets begin, as shares of a run. In a million steps the second is the paper's 300,000 of 3 million
updates, scaled with the run, and the third the same, unscaled."""


def delays(steps: int) -> tuple[Arm, ...]:
    """RLx2 whose three-step targets begin at each of `DELAY_SHARES` of a run, and never."""
    of = lambda share: {"n_step_delay": round(share * steps)}
    # An agent of one-step targets takes no notice; with the last delay its run is that of `table2-mujoco`.
    return (
        Arm(DENSE, {"method": "dense", **of(DELAY_SHARES[-1])}),
        *(Arm(f"from-{share:g}", {"method": "rlx2", **of(share)}) for share in DELAY_SHARES),
        Arm("never", {"method": "rlx2", "n_step": 1, **of(DELAY_SHARES[-1])}),
    )


def beyond(steps: int) -> tuple[Arm, ...]:
    """RLx2 with each of `FACTORS` and with combinations of them, beside dense agents with the same critics."""
    del steps
    return (
        _DENSE,
        Arm("dense-critic-norm", {"method": "dense", **FACTORS["critic-norm"].settings}),
        Arm("rlx2", {"method": "rlx2"}),
        *(factors.with_factors(name, [name], {}) for name in FACTORS),
        *(factors.with_factors(factors.combined(names), names, {}) for names in factors.COMBINATIONS),
    )


def beyond_frontier(steps: int) -> tuple[Arm, ...]:
    """RLx2 with the factors of `factors.RECIPE` at each sparsity of the search's grid."""
    del steps
    return (
        _DENSE,
        *(factors.with_factors(f"recipe@{sparsity:g}", factors.RECIPE, _both(sparsity)) for sparsity in search.GRID),
    )


def _of(names: Iterable[str]) -> tuple[Arm, ...]:
    """Methods as they are."""
    return tuple(Arm(name, {"method": name}) for name in names)


def _thinned(method: str, sparsity: float) -> Arm:
    return Arm(f"{method}@{sparsity:g}", {"method": method, **_both(sparsity)})


def _both(sparsity: float) -> Settings:
    """Actor and critics alike."""
    return dict.fromkeys(SPARSITY_SETTINGS, sparsity)


def _short(transitions: int) -> str:
    return f"{transitions / 1e6:.3g}M" if transitions >= 1e6 else f"{transitions / 1e3:.3g}k"
