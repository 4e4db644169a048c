"""A person's own code: found by where it is imported from, `package.module:name`, and called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rlx2_jax.errors import ConfigError


def imported(place: str, kind: str) -> Any:
    """What `package.module:name` names; modules of the working directory are found, too.

    Args:
      place: the name.
      kind: of the thing, as a person is told to write it: `function`, in `package.module:function`.

    Raises:
      ConfigError: there is no such thing, or importing it raises an error.
    """
    module, _, name = place.partition(":")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(
            f"{place} cannot be imported: {said(error)}; write package.module:{kind}, from a place on PYTHONPATH or "
            "in the working directory."
        ) from error
    return found


def tried(
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    passing: type[Exception] | tuple[type[Exception], ...] = ConfigError,
    mend: str = "mend it",
) -> Any:
    """What a function gives that is a person's own.

    Args:
      what: the function, as a sentence begins that tells of its error, such as `env x: its step`.
      function: called with the arguments.
      *arguments: its own.
      passing: errors that are told as they are.
      mend: how the sentence ends.

    Raises:
      ConfigError: it raised another error.
    """
    try:
        return function(*arguments)
    except passing:
        raise
    except Exception as error:
        raise ConfigError(f"{what} raised {said(error)}; {mend}.") from error


def said(error: Exception) -> str:
    """An error in a few words."""
    words = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__} ({words})" if words else type(error).__name__
