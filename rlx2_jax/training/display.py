"""What a person sees while a run goes on: a line per evaluation, and a bar below them on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

STAGE_SECONDS = 10.0
"""Between two lines on one stage where there is no terminal."""


class Display:
    """Progress on standard error. Silent when `show` is false."""

    def __init__(self, total_steps: int, show: bool = True):
        """Prepare; nothing is drawn before the context is entered."""
        self._console = Console(stderr=True, quiet=not show, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, status="")
        self._header_shown = False
        self._staged = time.monotonic()

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, soft_wrap=True, markup=False)

    def stage(self, text: str) -> None:
        """Say what is being done before the first step; on a terminal beside the bar, elsewhere now and then."""
        self._bar.update(self._task, status=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._staged > STAGE_SECONDS:
            self._staged = now
            self.say(text)

    def advance(self, env_steps: int, status: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=env_steps, status=status)

    def row(self, row: Mapping[str, Any]) -> None:
        """Print one evaluation."""
        if not self._header_shown:
            self.say(
                "   env steps            return   train   critic loss    mean Q  "
                "sparsity a/c  links moved  replay  distance  n  steps/s"
            )
            self._header_shown = True
        self.say(
            f"{row['env_steps']:>12,}  {row['return_mean']:>9.1f} ± {row['return_std']:<6.1f}"
            f"{_number(row['train_return'], 7, 0)}  {_number(row['critic_loss'], 12, 3)}"
            f"{_number(row['q_mean'], 10, 2)}  "
            f"{100 * row['actor_sparsity']:>5.1f}%/{100 * row['critic_sparsity']:.1f}% "
            f"{row['links_grown']:>11,} {row['replay_size']:>8,}"
            f"{_number(row['policy_distance'], 9, 2)} {row['n_step']:>2} "
            f"{row['steps_per_second']:>8.0f}"
        )


def _number(value: float, width: int, digits: int) -> str:
    return f"{value:>{width}.{digits}f}" if value == value else f"{'-':>{width}}"
