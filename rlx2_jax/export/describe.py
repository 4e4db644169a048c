"""What is told of a policy beside its program, made of what its file says."""

from __future__ import annotations

from rlx2_jax.export.description import Description
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
