"""Changes of RLx2 that may carry it further than the paper: one by one, and which of them together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from paper.study import DENSE, Arm, Settings
from rlx2_jax import envs
from rlx2_jax.analysis import accounting
from rlx2_jax.config import RunConfig, registry


class Factor(NamedTuple):
    """One change of RLx2 that may carry it further."""

    settings: Settings
    """What it sets."""
    fitted: Callable[[RunConfig], Settings] | None = None
    """As of an arm."""


ACTOR_KEEPS = 0.5
"""Share of the actor's links that it keeps where the critics get the others."""


def critic_heavier(config: RunConfig) -> Settings:
    """Sparsities with which the actor has fewer links and the critics more, of the same total size.

    Size is Table 2's: links of online and target networks, of which there are n actors (2 of TD3, 1 of SAC) and 4
    critics. With A and C weights when dense, densities a and c, and a share k of the actor's links kept,

        n A a + 4 C c = n A k a + 4 C c',   so   c' = c + (1 - k) n A a / (4 C)

    Hopper at half the paper's size: A = 69,120, C = 69,376, a = 0.01, c = 0.025, so a' = 0.005 and
    c' = 0.025 + 0.5 * 2 * 69,120 * 0.01 / (4 * 69,376) = 0.02749: 8,318 links, of which the critics had 83 % and now
    have 92 %.
    """
    # Of the dense agent: what its layers hold is all that is asked, and counting a method's own links takes longer.
    dense = dataclasses.replace(config, method=DENSE)
    counted = accounting.account(dense, *_sizes(config.env, config.backend))
    actors = 1 + registry.find(config.agent).passes.actor_target
    actor = 1 - config.actor_sparsity
    moved = (1 - ACTOR_KEEPS) * actors * counted.actor_weights_dense * actor
    critic = 1 - config.critic_sparsity + moved / (4 * counted.critic_weights_dense)
    return {"actor_sparsity": round(1 - ACTOR_KEEPS * actor, 6), "critic_sparsity": round(1 - critic, 6)}


@functools.cache
def _sizes(env: str, backend: str) -> tuple[int, int]:
    task = envs.make(env, backend)
    return task.observation_size, task.action_size


FACTORS: dict[str, Factor] = {
    "sparser": Factor({"method": "sparser"}),
    "critic-norm": Factor({"critic_network": "layernorm"}),
    "5-step": Factor({"n_step": 5}),
    "8-batches": Factor({"score_batches": 8}),
    "critic-heavier": Factor({}, critic_heavier),
    "1-step": Factor({"n_step": 1}),
}
"""From sparse to sparser; layer normalisation in the critics; a longer horizon than RLx2's three steps; grow scores
that are means over several batches; links moved from the actor to the critics. One-step targets were thought of later:
of all arms of `delay` on Hopper-v4 they had the highest return."""

SCREENED = ("sparser", "critic-norm", "5-step", "8-batches", "critic-heavier")
"""Those of them that `beyond` screens."""

KEPT = ("sparser", "critic-norm", "5-step")
"""Those that the screening keeps."""

RECIPE = ("sparser", "critic-norm")
"""Those that `beyond-frontier` searches with: what keeps the dense return at half the paper's size in `beyond` on
Hopper-v4. It searches sparsities that actor and critics share, so `critic-heavier` is not for it."""

COMBINATIONS: tuple[tuple[str, ...], ...] = (SCREENED, KEPT, ("critic-norm", "1-step"), RECIPE)
"""Which of them are tried together: all that are screened; those that the screening keeps; and, thought of after their
long runs, the best single one with one-step targets, and the two that the screening liked most."""


def with_factors(name: str, names: Sequence[str], settings: Settings) -> Arm:
    """An arm with these factors and settings beside."""
    chosen = [FACTORS[each] for each in names]
    merged = {"method": "rlx2", **{k: v for factor in chosen for k, v in factor.settings.items()}, **settings}
    return Arm(name, merged, fitted=next((factor.fitted for factor in chosen if factor.fitted), None))


def combined(names: Sequence[str]) -> str:
    """Name of the arm with these factors."""
    return "together" if names == SCREENED else "+".join(names)
