"""The compared training schemes, each a combination of mechanisms. To add one, add a row here.

| method | links | topology | TD target | replay |
|---|---|---|---|---|
| dense | all | fixed | 1-step | fixed |
| tiny | a narrower dense network of about as many weights | fixed | 1-step | fixed |
| ss | Erdős-Rényi | fixed | 1-step | fixed |
| set | Erdős-Rényi | random growth (Mocanu et al., 2018) | 1-step | fixed |
| rigl | Erdős-Rényi | gradient growth (Evci et al., 2020) | 1-step | fixed |
| rlx2 | Erdős-Rényi | gradient growth | delayed 3-step | dynamic capacity |

They are one program, in which the method is data. Another of the package is a program of its own: `sparser`, RLx2 from
sparse to sparser, as GraNet prunes while links move (Liu et al., 2021). It begins with twice as many links as it ends
with, in each matrix that can hold them, and between 20 and 80 % of training their number falls along a cubic (Zhu and
Gupta, 2017). A run that ends at 99 % begins at 98 %, and never has more links than RLx2 at 98 %, to the rounding of a
matrix's number. One of your own is another program, too: `package.module:name`, where the name is `Mechanisms` that
hold parts of `rlx2_jax.sparse`.

    def saliency(weight, gradient, key):
        return abs(weight * gradient)

    mine = Mechanisms(drop=saliency)
    # Zhu and Gupta, 2017, from dense
    gradual = Mechanisms(progress=sparse.cubic(0, 0.8), fraction=sparse.constant(0))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import places
from rlx2_jax.sparse import criteria, densities, schedules, structures, trees
from rlx2_jax.sparse.criteria import Criterion
from rlx2_jax.sparse.densities import Density
from rlx2_jax.sparse.schedules import Schedule
from rlx2_jax.sparse.structures import Structure
from rlx2_jax.sparse.trees import Where

TOPOLOGIES = ("fixed", "random", "gradient")
"""How links move: never, dropped by magnitude and grown at random, or grown by gradient."""

_ALL = densities.uniform(0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Mechanisms:
    """What a method is made of.

    The parts after the first four are for methods of one's own, which are sparse. How sparse, and when and by how much
    links move, are settings of the run. Times are shares of the topology's evolution, from 0 to 1 at its end.
    """

    kind: str = "sparse"
    """`dense`, `tiny` or `sparse`: which links the initial mask may hold."""
    topology: str = "gradient"
    """One of `TOPOLOGIES`."""
    n_step: int = 1
    """Steps in a TD target, once the delay is over."""
    dynamic_buffer: bool = False
    """Whether old off-policy data is dropped."""
    _: dataclasses.KW_ONLY
    drop: Criterion = criteria.magnitude
    """Score by which links are dropped: the smallest go."""
    grow: Criterion | None = None
    """Score by which links are grown: the largest come; None for what the topology says."""
    initial: Criterion | None = None
    """Score by which the first links are chosen: the largest, by a gradient of zero, for there is none yet; None for
    what `initial_mask` says."""
    fraction: Schedule | None = None
    """Share of `drop_fraction` that an event moves, by time; None for half a cosine down to none."""
    progress: Schedule | None = None
    """How far numbers of links are on their way from `start`, by time, 1 at its end; None where they never change."""
    start: Density = _ALL
    """Densities at the beginning, where they change."""
    start_times: int | None = None
    """How many times as many links as at the end each matrix begins with, at most all of them, where their number
    changes; None for what `start` says."""
    density: Callable[[float], Density] = densities.erdos_renyi
    """Densities of a sparsity, which is the setting of the network."""
    structure: Structure = structures.unstructured
    """How the entries of a matrix fall into groups that each hold a number of links."""
    where: Where = trees.matrices
    """Which of the matrices are sparse."""


METHODS: dict[str, Mechanisms] = {
    "dense": Mechanisms("dense", "fixed", 1, False),
    "tiny": Mechanisms("tiny", "fixed", 1, False),
    "ss": Mechanisms("sparse", "fixed", 1, False),
    "set": Mechanisms("sparse", "random", 1, False),
    "rigl": Mechanisms("sparse", "gradient", 1, False),
    "rlx2": Mechanisms("sparse", "gradient", 3, True),
}
"""The compared methods by name."""

FURTHER: dict[str, Mechanisms] = {
    "sparser": Mechanisms("sparse", "gradient", 3, True, start_times=2, progress=schedules.cubic(0.2, 0.8)),
}
"""Those of the package that are programs of their own, by name."""

NAMES = (*METHODS, *FURTHER)
"""Names of all of the package's methods."""


def find(name: str) -> Mechanisms:
    """The mechanisms of a method.

    Raises:
      ConfigError: there is none of that name, or what is there is none.
    """
    return METHODS[name] if name in METHODS else own(name) or _imported(name)


def own(name: str) -> Mechanisms | None:
    """The mechanisms of a method that is a program of its own; None of one that is not.

    It is a further one of the package, or one of a person's own, which is named by its place.

    Raises:
      ConfigError: there is no method at that place.
    """
    return FURTHER.get(name) or (_imported(name) if ":" in name else None)


STATIC = ("method", "topology")
"""Settings that make another program of a method that is one of its own; of the compared methods they are data."""


def _imported(name: str) -> Mechanisms:
    found = places.imported(name, "name")
    if not isinstance(found, Mechanisms):
        raise ConfigError(
            f"method={name} is of type {type(found).__name__}; name an object of rlx2_jax.config.Mechanisms."
        )
    if found.kind != "sparse" or found.topology not in TOPOLOGIES:
        raise ConfigError(
            f"method={name} has kind={found.kind!r} and topology={found.topology!r}; use kind='sparse', and for the "
            f"topology one of {', '.join(TOPOLOGIES)}."
        )
    for part, mend in _PARTS.items():
        value = getattr(found, part)
        if not (callable(value) or (value is None and part not in ("drop", "start", "density", "where"))):
            raise ConfigError(f"method={name}: its {part} is {value!r:.40}; give a function, such as {mend}.")
    if found.progress is None and (found.start is not _ALL or found.start_times is not None):
        raise ConfigError(
            f"method={name} has a start for its numbers of links, which never change; say how by progress, such as "
            "sparse.cubic(0, 0.8), or leave start and start_times out."
        )
    return found


_PARTS = {
    "drop": "sparse.criteria.magnitude",
    "grow": "sparse.criteria.gradient",
    "initial": "sparse.criteria.magnitude",
    "fraction": "sparse.constant(0.3)",
    "progress": "sparse.cubic(0, 0.8)",
    "start": "sparse.uniform(0.5)",
    "density": "sparse.erdos_renyi, of a sparsity",
    "where": "lambda path, leaf: True",
}
"""Parts of a method that are functions, and what a person is told to give in place of what is none."""
