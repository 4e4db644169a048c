"""Agents: TD3 and SAC as bundles of pure functions. To add one, write a `make_...` and name it here."""

from rlx2_jax.agents.base import Agent, AgentState, SparseNetwork
from rlx2_jax.agents.sac import make_sac
from rlx2_jax.agents.td3 import make_td3
from rlx2_jax.config import Config


def make_agent(config: Config, observation_size: int, action_size: int) -> Agent:
    """The agent a resolved configuration names.

    Raises:
      CheckpointError: masks to begin with that cannot be read.
    """
    make = {"td3": make_td3, "sac": make_sac}[config.agent]
    return make(config, observation_size, action_size)


__all__ = ["Agent", "AgentState", "SparseNetwork", "make_agent", "make_sac", "make_td3"]
