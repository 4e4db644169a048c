"""What a study is: arms, settings that differ, over rows, an agent on a task, and the runs that these make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from paper.published import Published
from rlx2_jax.config import RunConfig

Settings = Mapping[str, Any]
"""Values of `Config` fields."""

DENSE = "dense"
"""The arm that scores are measured by."""

SPARSITY_SETTINGS = ("actor_sparsity", "critic_sparsity")
"""Settings that say how sparse networks are."""


class Arm(NamedTuple):
    """What a study compares with others: what it changes in the row's configuration."""

    name: str
    settings: Settings
    ticket: str | None = None
    """The arm whose run, of the same seed, found the masks that this one begins with."""
    teacher: str | None = None
    """The arm whose run, of the same seed, this one imitates; None for reinforcement learning."""
    fitted: Callable[[RunConfig], Settings] | None = None
    """Further settings, made of the configuration that it would have without them."""


class Contrast(NamedTuple):
    """What a study says beforehand of two rows: how an arm's share of the dense return differs between them."""

    rows: tuple[str, str]
    """The first is compared with the second."""
    predicted: Mapping[str, int]
    """By arm: 1 if its share is larger on the first, -1 if it is smaller."""


class Screening(NamedTuple):
    """A rule, fixed before any run, by which arms of short runs go on to long ones."""

    steps: int
    """Length of the short runs."""
    arms: tuple[str, ...]
    """Those that it is about."""
    least: float
    """One goes on if its score relative to the study's first reference, mean of the tasks, is above this."""


class Study(NamedTuple):
    """A table or figure of the paper, or a question beside it."""

    title: str
    question: str
    """What it answers, in one or two sentences."""
    rows: tuple[str, ...]
    """`agent/env` in the order in which they are run by default."""
    seeds: int
    """How many, by default."""
    arms: Callable[[int], tuple[Arm, ...]]
    """Arms of a study whose runs take that many environment steps."""
    focus: str
    """The arm that the study is about."""
    paper: Mapping[str, Mapping[str, float]] = {}
    """The paper's return in percent of the dense agent's, by row and arm."""
    figure: str | None = None
    """What is drawn beside learning curves and bars: `buffer` or `sparsity`."""
    search: bool = False
    """Whether `search.search` chooses which arms are run, with how many seeds."""
    settings: Mapping[str, Any] = {}
    """What all its runs have where nothing else is asked for."""
    of_row: Mapping[str, Settings] = {}
    """The same of single rows, over those of Table 2."""
    published: Mapping[str, tuple[Published, ...]] = {}
    """Dense returns of others, by row."""
    references: tuple[str, ...] = ()
    """Arms beside the dense one that the others are measured by."""
    screening: Screening | None = None
    """How arms of short runs go on to long ones, if they do."""
    contrast: Contrast | None = None
    """What it says beforehand of two rows, if it does."""


class Run(NamedTuple):
    """One run of a study."""

    row: str
    arm: str
    config: RunConfig
    """Configuration without the place of another run's masks, where it begins with those."""
    ticket: str | None = None
    """Ticket of its arm."""
    teacher: str | None = None
    """Teacher of its arm."""
    conditions: Mapping[str, Any] = {}
    """Settings that all arms share, as far as leaving them out would change a run, and the number of steps: what runs
    must agree in to be compared."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms whose runs have to be there before it."""
        return tuple(arm for arm in (self.ticket, self.teacher) if arm is not None)

    @property
    def key(self) -> tuple[str, str, int]:
        """Row, arm and seed."""
        return self.row, self.arm, self.config.seed

    @property
    def sources(self) -> tuple[tuple[str, str, int], ...]:
        """Keys of the runs that have to be there before it."""
        return tuple((self.row, arm, self.config.seed) for arm in self.needs)
