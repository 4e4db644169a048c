"""Agents: TD3 and SAC as bundles of pure functions. To add one, write a `make_...` and name it here."""

from rlx2_jax.agents.base import Agent, AgentState, Found, SparseNetwork
from rlx2_jax.agents.sac import make_sac
from rlx2_jax.agents.td3 import make_td3
from rlx2_jax.config import Config


def make_agent(config: Config, observation_size: int, action_size: int, ticket: Found | None = None) -> Agent:
    """The agent a resolved configuration names.

    A ticket is what another run found, to begin with.
    """
    make = {"td3": make_td3, "sac": make_sac}[config.agent]
    return make(config, observation_size, action_size, ticket)


__all__ = ["Agent", "AgentState", "SparseNetwork", "make_agent", "make_sac", "make_td3"]
