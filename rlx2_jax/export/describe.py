"""What is told of a policy beside its program: made of what its file says, and kept in archives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlx2_jax.envs.labels import Labels
from rlx2_jax.export.description import Description
from rlx2_jax.io import archives
from rlx2_jax.policies import Policy

FACTS = ("env", "backend", "agent", "env_steps", "episode_length", "return_mean", "commit", "version")
"""Values of a policy's own description that are kept as they are."""


def describe(policy: Policy) -> Description:
    """Names, limits and origin of a policy."""
    about, labels = policy.about, policy.labels
    facts = {fact: about.get(fact) for fact in FACTS} | {"network": about["config"].get("network", "mlp")}
    low, high = zip(*labels.action_limits, strict=True)
    return Description(
        name=f"{about['agent']} on {about['env']}",
        observation_names=labels.observation_names,
        action_names=labels.action_names,
        action_low=low,
        action_high=high,
        provenance={fact: "unknown" if value is None else str(value) for fact, value in facts.items()},
    )


def described(description: Description) -> dict[str, Any]:
    """A description as it stands in the `about` of an archive."""
    return dataclasses.asdict(description)


def description_of(about: Mapping[str, Any]) -> Description:
    """The description in the `about` of an archive.

    Raises:
      ValueError: there is none.
    """
    kinds = {"name": str, "observation_names": list, "action_names": list, "action_low": list, "action_high": list}
    archives.require(about, {**kinds, "provenance": dict})
    low, high = about["action_low"], about["action_high"]
    observations, actions = len(about["observation_names"]), len(about["action_names"])
    if len(low) != actions or len(high) != actions:
        raise ValueError("its description has other limits than actions")
    labels = Labels.read({**about, "action_limits": [*zip(low, high, strict=True)]}, observations, actions)
    if not all(isinstance(value, str) for value in about["provenance"].values()):
        raise ValueError("its description has another provenance than texts")
    return Description(
        about["name"], labels.observation_names, labels.action_names, tuple(low), tuple(high), about["provenance"]
    )
