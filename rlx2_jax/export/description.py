"""What a writer tells of a policy beside its program: names, bounds of actions, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Description:
    """Names of a policy's dimensions, the bounds of its actuators, and its origin."""

    name: str
    """Of the policy, for people: its task, for instance."""
    observation_names: tuple[str, ...]
    """One for each entry of an observation."""
    action_names: tuple[str, ...]
    """One for each entry of an action."""
    action_low: tuple[float, ...]
    """What -1 of an action means, in the actuator's unit."""
    action_high: tuple[float, ...]
    """What 1 means."""
    provenance: Mapping[str, str]
    """How the policy was made, by the name of each fact."""
