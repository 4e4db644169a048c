"""What a run's functions are made of, beside its state."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlx2_jax import envs
from rlx2_jax.agents import OffPolicyAgent
from rlx2_jax.config import HParams, RunConfig
from rlx2_jax.replay import buffer
from rlx2_jax.replay.buffer import Batch, Replay
from rlx2_jax.runtime.devices import DataParallel


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The static parts of a run: nothing here is traced."""

    config: RunConfig
    env: envs.Environment
    vector: envs.VectorEnvironment
    agent: OffPolicyAgent
    devices: DataParallel
    """The devices it runs on."""

    def sample(
        self, replay: Replay, key: jax.Array, shape: tuple[int, ...], hparams: HParams, multi_step: jax.Array
    ) -> Batch:
        """Batches of windows, as long as they are now, `[*shape, ...]`."""
        n_step = n_step_now(hparams, multi_step)
        return buffer.sample(replay, key, shape, n_step, self.config.n_max, hparams.gamma, self.devices)


def n_step_now(hparams: HParams, multi_step: jax.Array) -> jax.Array:
    """Steps of a window, before or after the delay."""
    return jnp.where(multi_step, hparams.n_step, 1)


def crossed(before: jax.Array, after: jax.Array, interval: jax.Array) -> jax.Array:
    """Whether a counter passed a multiple of `interval` on its way from `before` to `after`."""
    return after // interval > before // interval
