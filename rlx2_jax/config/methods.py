"""The compared training schemes, each a combination of mechanisms. To add one, add a row here.

| method | links | topology | TD target | replay |
|---|---|---|---|---|
| dense | all | fixed | 1-step | fixed |
| tiny | a narrower dense network of about as many weights | fixed | 1-step | fixed |
| ss | Erdős-Rényi | fixed | 1-step | fixed |
| set | Erdős-Rényi | random growth (Mocanu et al., 2018) | 1-step | fixed |
| rigl | Erdős-Rényi | gradient growth (Evci et al., 2020) | 1-step | fixed |
| rlx2 | Erdős-Rényi | gradient growth | delayed 3-step | dynamic capacity |
"""

from __future__ import annotations

from typing import NamedTuple

TOPOLOGIES = ("fixed", "random", "gradient")
"""How links move: never, dropped by magnitude and grown at random, or grown by gradient."""


class Mechanisms(NamedTuple):
    """What a method is made of."""

    structure: str
    """`dense`, `tiny` or `sparse`: which links the initial mask may hold."""
    topology: str
    """One of `TOPOLOGIES`."""
    n_step: int
    """Steps in a TD target, once the delay is over."""
    dynamic_buffer: bool
    """Whether old off-policy data is dropped."""


METHODS: dict[str, Mechanisms] = {
    "dense": Mechanisms("dense", "fixed", 1, False),
    "tiny": Mechanisms("tiny", "fixed", 1, False),
    "ss": Mechanisms("sparse", "fixed", 1, False),
    "set": Mechanisms("sparse", "random", 1, False),
    "rigl": Mechanisms("sparse", "gradient", 1, False),
    "rlx2": Mechanisms("sparse", "gradient", 3, True),
}
