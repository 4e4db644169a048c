"""Agents and networks by name, and what is to be known of an agent before it is made.

A module of `rlx2_jax.agents` is an agent of its name: the class that it calls `agent`. One of your own is
`package.module:Class`. A module of `rlx2_jax.networks.kinds` is a network of its name. Configuration asks here instead
of importing them, which know of configurations.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import places

HOUSE = Path(__file__).parents[1]
"""Directory of the package."""


def _modules(folder: str) -> tuple[str, ...]:
    """Names of the modules in a folder of the package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(HOUSE / folder)])))


AGENTS = tuple(sorted({*_modules("agents")} - {"base", "own"}))
"""Names of the package's own agents."""

NETWORKS = _modules("networks/kinds")
"""Names of the package's own networks."""


NO_LOGGER = "none"
"""The name of no logger at all."""

LOGGERS = ("tensorboard", *sorted({*_modules("training/loggers")} - {"base", "tensorboard"}), NO_LOGGER)
"""Names of the package's own loggers, the usual one first."""


class Defaults(NamedTuple):
    """What an agent has of its own where nothing is asked for."""

    policy_delay: int
    """Critic updates per actor update."""
    quick_steps: int
    """Length of a run on the quick tasks and the probes."""
    buffer_max: int
    """Most transitions kept, at any length of run."""
    buffer_min: int
    """Fewest, in 3 million steps."""
    update_ratio: float = 1.0
    """Critic updates per environment step."""


class Passes(NamedTuple):
    """What an agent computes in an update beyond what all do: the FLOPs of `analysis.accounting`."""

    actor_target: bool
    """Whether there is a target actor."""
    critics_of_actor_loss: int
    """Critics that the actor's loss passes through, of the two."""
    entropy_between: bool
    """Whether a target passes the states inside its window through the actor."""
    own_scalars: int = 0
    """Numbers in the state beside the networks, with their moments and counts."""


class AgentKind(Protocol):
    """An agent's class."""

    defaults: ClassVar[Defaults]
    """Settings where nothing is asked for."""
    passes: ClassVar[Passes]
    """What an update computes, for accounting."""
    release_init: ClassVar[str]
    """How networks begin in the paper's release (see `networks.MLP.initial`)."""

    def __call__(self, config: Any, observation_size: int, action_size: int) -> Any:
        """The agent of a resolved configuration."""

    @staticmethod
    def actor_outputs(action_size: int) -> int:
        """Outputs of the actor's network."""

    @staticmethod
    def act(output: Any) -> Any:
        """The noise-free action `[..., A]` of the actor's output."""

    @staticmethod
    def sample_action(output: Any, key: Any) -> Any:
        """An action `[..., A]` of the distribution that the actor's output is of."""

    @classmethod
    def critic_module(cls, module: Any) -> Any:
        """The network of a critic, of the one that the configuration asks for."""


def find(name: str) -> AgentKind:
    """The class of an agent.

    Raises:
      ConfigError: there is none of that name or at that place.
    """
    if ":" in name:
        found: AgentKind = places.imported(name, "Class")
        _check(name, found)
        return found
    if name not in AGENTS:
        raise ConfigError(f"unknown agent {name!r}; valid: {', '.join(AGENTS)}, or package.module:Class.")
    own: AgentKind = importlib.import_module(f"rlx2_jax.agents.{name}").agent
    return own


def _check(name: str, found: Any) -> None:
    """Refuse what is no agent.

    Raises:
      ConfigError: with the mend.
    """
    mend = "derive a class from rlx2_jax.agents.OffPolicyAgent, or from an agent that is there"
    if not isinstance(found, type):
        raise ConfigError(f"agent={name} is of type {type(found).__name__}; {mend}.")
    for attribute, kind in {"defaults": Defaults, "passes": Passes, "release_init": str}.items():
        if not isinstance(getattr(found, attribute, None), kind):
            raise ConfigError(f"agent={name} has no `{attribute}` of type {kind.__name__}; {mend}, and say it.")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(f"agent={name} lacks {', '.join(lacking)}; write what an agent has to say of its own.")
