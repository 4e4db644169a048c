"""Weights & Biases: online, or by `WANDB_MODE=offline` in files under `wandb/` of the run, for `wandb sync` later.

The project is `WANDB_PROJECT`, or rlx2_jax. The x-axis of every curve is `env_steps`. A resumed run goes on with the
same run there, by the id in `wandb.json`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rlx2_jax.training.loggers.base import PROJECT, Kept, Run

FINISH_SECONDS = 60
"""Longest wait at a run's end for what is still to be sent; `wandb sync` sends what is left."""


class WandB:
    """One run at Weights & Biases."""

    def __init__(self, run: Run):
        """Begin, or go on with, the run there."""
        import wandb

        self._kept = Kept(run, "wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.directory),
            id=self._kept.id,
            name=run.name,
            group=run.group,
            config=run.config.to_dict(),
            resume="allow",
            # A sweep has many runs in one process; the terminal is the display's.
            settings=wandb.Settings(reinit="create_new", silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")
        if not (self._run.offline or self._run.disabled):
            run.say(f"Weights & Biases shows the run at {self._run.url}")

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Send one evaluation, unless it was sent before the run was resumed."""
        if not self._kept.reached(step):
            self._run.log({**row, "env_steps": step})
            self._kept.reach(step)

    def flush(self) -> None:
        """Leave it to the service's own process, which sends as it is given."""

    def close(self) -> None:
        """Send what is left, and end."""
        self._run.finish(exit_code=0)


logger = WandB
