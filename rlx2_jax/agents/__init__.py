"""Agents: each is the class that its module calls `agent`. To add one, write a module here.

`base` says what an agent is, `own` sees whether a person's is one; networks, replay and loops know no agent by name.
"""

from rlx2_jax.agents.base import AgentState, Found, FoundMasks, OffPolicyAgent
from rlx2_jax.config import RunConfig, registry


def make_agent(config: RunConfig, observation_size: int, action_size: int) -> OffPolicyAgent:
    """The agent that a resolved configuration names.

    Raises:
      ConfigError: there is none, or not with these settings.
    """
    made = registry.find(config.agent)(config, observation_size, action_size)
    assert isinstance(made, OffPolicyAgent)
    return made


__all__ = ["AgentState", "Found", "FoundMasks", "OffPolicyAgent", "make_agent"]
