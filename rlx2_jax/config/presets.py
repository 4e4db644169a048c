"""Named settings: the rows of the paper's Table 2, and the readings of the method.

Presets compose from left to right, `("td3/hopper", "release")`, and explicit values override them.

Where the paper's text and its published code differ, the readings choose:

| switch | rlx2 (default) | paper | release |
|---|---|---|---|
| `distance`: policy distance | half_mse | l2 | half_mse |
| `drop_rule`: too distant data | once: a tenth | until_close | once |
| `initial_mask` | magnitude | random | magnitude |
| `reset_moments`: Adam moments of dropped links | zeroed | zeroed | kept |
| `sac_explore`: SAC collects with | sample | sample | mode |
| `mask_initial_targets` | yes | yes | no, dense until the first Polyak step |
| `ticket_weights`: initial weights of a ticket | initial | initial | release: those of the first mask's links |

The threshold of 0.2 is the release's, for `half_mse`. Beside `l2` it means something else, for that distance holds the
exploration noise: what the very same policy did lies at 0.16 with three actions, 0.24 with six, 0.27 with eight.

A deviation from the paper, for runs shorter than its own: `kernel_init=lecun`. The release's distribution for TD3,
PyTorch's default, made for dense layers, leaves the output of a 98 % sparse actor nearly constant, from which runs of a
few hundred thousand steps do not recover (`experiments/results/hopper-td3`). At 90 % it does well, and on
inverted_pendulum better.

Not reproduced, in any reading: the release steps one environment, here `num_envs` begin together, and stay in phase
where nothing ends an episode but its time limit; with one, TD3 takes two steps here, then makes both updates, where the
release makes one after each; at a topology event it makes no optimiser step, and scores links by the gradient of the
batch at hand (here the step is made, and the score is of a fresh batch); it drops a tenth of the buffer even where that
leaves fewer than the fewest (here `buffer_min` stays); the gradient of SAC's temperature holds a factor of the
temperature (here it is that of the loss in its logarithm, `log_alpha * (entropy - target)`); its SAC grow score also
holds the previous actor-loss gradient (here it is the critic's alone); its zero-valued active weights tie with absent
ones when dropping (here an absent link can never be kept); it takes a `done` exactly at the time limit for a truncation
(here the environment's own signal decides); each of its evaluations begins with the same ten starts (here each draws
its own); it rounds a layer's number of links up (here to the nearest); it checks the buffer before the updates of a
step (here after them), and takes three-step targets one update sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlx2_jax.config import PAPER_STEPS, Config
from rlx2_jax.errors import ConfigError


def _row(agent: str, env: str, actor: float, critic: float) -> dict[str, Any]:
    return {
        "agent": agent,
        "env": env,
        "actor_sparsity": actor,
        "critic_sparsity": critic,
        "total_steps": PAPER_STEPS,
    }


ROWS: dict[str, dict[str, Any]] = {
    "td3/halfcheetah": _row("td3", "halfcheetah", 0.90, 0.85),
    "td3/hopper": _row("td3", "hopper", 0.98, 0.95),
    "td3/walker2d": _row("td3", "walker2d", 0.97, 0.95),
    "td3/ant": _row("td3", "ant", 0.96, 0.88),
    "sac/halfcheetah": _row("sac", "halfcheetah", 0.90, 0.80),
    "sac/hopper": _row("sac", "hopper", 0.98, 0.95),
    "sac/walker2d": _row("sac", "walker2d", 0.90, 0.90),
    "sac/ant": _row("sac", "ant", 0.90, 0.75),
}
"""Table 2 on Brax's tasks: environment, agent and sparsities, at the paper's length."""

PAPER_TASKS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "ant": "Ant-v3"}
"""The paper's own tasks, by Brax's names: it ran versions 3, which but for the ant are alike to versions 4."""


def on_mujoco(row: str) -> str:
    """The row on the paper's own task, of one on Brax's."""
    agent, _, task = row.partition("/")
    return f"{agent}/{PAPER_TASKS[task]}"


PAPER_ROWS = {on_mujoco(name): row | {"env": PAPER_TASKS[row["env"]]} for name, row in ROWS.items()}
"""Table 2 on those."""

READINGS: dict[str, dict[str, Any]] = {
    "rlx2": {},
    "paper": {"distance": "l2", "drop_rule": "until_close", "initial_mask": "random"},
    "release": {
        "reset_moments": False,
        "sac_explore": "mode",
        "mask_initial_targets": False,
        "ticket_weights": "release",
    },
}
"""The table at the head of this module, as differences from `Config`'s defaults."""

PRESETS: dict[str, dict[str, Any]] = {**READINGS, **ROWS, **PAPER_ROWS}
"""Every preset by name: what it sets."""


def make_config(presets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of the given presets, left to right, then the overrides.

    Raises:
      ConfigError: an unknown preset, or an override that is no field of `Config`.
    """
    return Config.from_dict({**settings(presets), **(overrides or {})})


def settings(presets: Sequence[str]) -> dict[str, Any]:
    """What the given presets set, left to right.

    Raises:
      ConfigError: an unknown one.
    """
    values: dict[str, Any] = {}
    for name in presets:
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; valid: {', '.join(PRESETS)}.")
        values.update(PRESETS[name])
    return values
