"""How a setting is declared, in one place: its default, its help, what it can be, and who reads it."""

from __future__ import annotations

import dataclasses
import enum
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.errors import ConfigError

NEVER = 2**31 - 1
"""A point in time that no run reaches, and the largest whole number of any setting (the counters are int32)."""


class Range(NamedTuple):
    """What a number can be, whatever the other settings are."""

    holds: Callable[[float], bool]
    """Whether a number is one of them."""
    mend: str
    """What a person is told of another one."""


AT_LEAST_1 = Range(lambda value: value >= 1, "use at least 1")
"""Counts of things there must be."""
POSITIVE = Range(lambda value: value > 0, "use a positive number")
"""Factors and step sizes."""
ZERO_OR_MORE = Range(lambda value: value >= 0, "use zero or more")
"""Sizes and counts that may be none."""
SHARE = Range(lambda value: 0 <= value <= 1, "use a number in [0, 1]")
"""Parts of a whole."""
SPARSITY = Range(lambda value: 0 <= value < 1, "use a sparsity in [0, 1)")
"""Shares of absent weights, which are not all."""


class Group(enum.StrEnum):
    """Headings of `--help`, which shows the settings that people need most; `--helpfull` has all."""

    TASK = enum.auto()
    """What is to be learned."""
    AGENT = enum.auto()
    """What learns."""
    SPARSITY = enum.auto()
    """What is absent, and how it is chosen."""
    LENGTH = enum.auto()
    """How much is done."""
    OUTPUT = enum.auto()
    """What is left."""
    COMPUTING = enum.auto()
    """How it is computed."""


class Host(enum.Enum):
    """Who on the host reads a setting that no program sees."""

    RUN = enum.auto()
    """Each run for itself."""
    LOOP = enum.auto()
    """The loop over chunks, which the runs of a batch share."""


def declare(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    own: str = "",
    within: Range | None = None,
    unset: str = "",
    host: Host | None = None,
    place: bool = False,
    several: bool = False,
    group: Group | None = None,
) -> Any:
    """A field of `Config`.

    Args:
      default: None for what is derived.
      help: of its flag, without what follows from the other arguments.
      choices: all it can be; in a mapping, each with what is said of it.
      own: what a person's own choice is written like, with a colon.
      within: the numbers it can be.
      unset: in words, what is derived where it is left out.
      host: who reads it, if no program sees it.
      place: whether it names a file or a directory.
      several: whether it can be several of its choices, separated by commas.
      group: where `--help` shows it, if it is one of those that people need most.
    """
    brief = help
    said = choices if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
    if several:
        help += ", separated by commas"
    if said:
        brief += ": " + "|".join([*said, own] if own else said)
        help += ": " + ", ".join(f"{choice} ({words})" if words else choice for choice, words in said.items())
    if own:
        help += f", or {own}"
    if unset:
        help += f" (default: {unset})"
    if shown := unset or (default if default is not None and default != "" else ""):
        brief += f" [{','.join(map(str, shown)) if isinstance(shown, tuple) else shown}]"
    about = {"help": help, "choices": tuple(said), "own": own, "within": within, "host": host, "place": place}
    about |= {"several": several, "group": group, "brief": brief}
    return dataclasses.field(default=default, metadata=about)


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse what a field cannot be, whatever the others are.

    Raises:
      ConfigError: one sentence on how to mend it.
    """
    name, choices, within = field.name, field.metadata["choices"], field.metadata["within"]
    own = field.metadata["own"]
    parts = value.split(",") if field.metadata["several"] else [value]
    known = not choices or all(part in choices or (own and ":" in part) for part in parts)
    require(known, f"unknown {name} {value!r}; valid: {', '.join(choices)}" + (f", or {own}." if own else "."))
    if isinstance(value, int):
        require(abs(value) <= NEVER, f"{name}={value} is too large; use at most {NEVER}.")
    if within is not None:
        require(within.holds(value), f"{name}={value}: {within.mend}.")
    if isinstance(value, float):
        require(math.isfinite(value), f"{name}={value}: use a finite number.")


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "use true or false"),
    "int": (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "use a whole number"),
    "float": (lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool), "use a number"),
    "str": (lambda value: isinstance(value, str), "use a text"),
    "tuple[int, ...]": (
        lambda value: isinstance(value, tuple) and all(KINDS["int"][0](part) for part in value),
        "use whole numbers",
    ),
    "None": (lambda value: value is None, "or leave it out"),
}
"""What a value of a type is, as annotations name types, and what a person is told of another one."""


def plain_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value as a configuration holds it: Python's numbers, whole ones where the field has those, and tuples."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(plain_value(field, part) for part in value)
    if isinstance(value, np.generic):
        value = value.item()
    whole = "int" in str(field.type) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def check_kind(field: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value of another type than the field's.

    Raises:
      ConfigError: one sentence on how to mend it.
    """
    kinds = [KINDS[kind] for kind in str(field.type).split(" | ")]
    fits = any(fit(value) for fit, _ in kinds)
    own, thing = field.metadata.get("own"), type(value).__name__
    if own and not isinstance(value, int | float | tuple | dict | None):
        require(fits, f"{field.name} is of type {thing}; name it as {own}, or __main__:name in a notebook or script.")
    require(fits, f"{field.name}={value!r:.40}: {', '.join(mend for _, mend in kinds)}.")


def require(condition: bool, message: str) -> None:
    """Refuse a configuration, with one sentence, unless a condition holds."""
    if not condition:
        raise ConfigError(message)
