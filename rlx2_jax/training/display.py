"""What a person sees while a run goes on: a line per evaluation, and a bar below them on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlx2_jax.io.streams import Stream


class _Column(NamedTuple):
    """A column of the table of evaluations."""

    title: str
    text: Callable[[Mapping[str, Any]], str]
    width: int
    rank: int
    """Order of importance: where there is little room, the columns of the highest rank go first."""


COLUMNS = (
    _Column("env steps", lambda row: f"{row['env_steps']:,}", 12, 0),
    _Column("return", lambda row: f"{row['return_mean']:.1f} ± {row['return_std']:<6.1f}", 18, 0),
    _Column("train", lambda row: _number(row["train_return"], 0), 7, 4),
    _Column("critic loss", lambda row: _number(row["critic_loss"], 3), 12, 2),
    _Column("mean Q", lambda row: _number(row["q_mean"], 2), 9, 2),
    _Column(
        "sparsity a/c", lambda row: f"{100 * row['actor_sparsity']:.1f}%/{100 * row['critic_sparsity']:.1f}%", 12, 3
    ),
    _Column("links moved", lambda row: f"{row['links_grown']:,}", 11, 3),
    _Column("replay", lambda row: f"{row['replay_size']:,}", 9, 5),
    _Column("distance", lambda row: _number(row["policy_distance"], 2), 8, 6),
    _Column("n", lambda row: str(row["n_step"]), 2, 6),
    _Column("steps/s", lambda row: f"{row['steps_per_second']:.0f}", 7, 1),
)

GAP = 2
"""Blanks before a column."""

STAGE_SECONDS = 10.0
"""Between two lines on one stage where there is no terminal."""


class Display:
    """Progress on standard error. Silent when `show` is false, and when nobody is there any more to read it."""

    def __init__(self, total_steps: int, show: bool = True):
        """Prepare; nothing is drawn before the context is entered."""
        # A terminal that is gone, or a full disk, is no reason to end a run.
        self._console = Console(file=cast(TextIO, Stream(sys.stderr, OSError)), quiet=not show, highlight=False)
        parts = _bar_parts(self._console.width)
        self._room = self._console.width - sum(1 + width for width, _ in parts)
        self._bar = Progress(
            *(part for _, part in parts),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, status="")
        self._columns = fitting(self._console.width if self._console.is_terminal else None)
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
        self._bar.update(self._task, status=text[: max(self._room, 0)])
        now = time.monotonic()
        if not self._console.is_terminal and now - self._staged > STAGE_SECONDS:
            self._staged = now
            self.say(text)

    def advance(self, env_steps: int, status: str) -> None:
        """Move the bar; of a status, its parts apart by two blanks, the first ones are shown that there is room for."""
        parts = status.split("  ")
        while parts and len("  ".join(parts)) > self._room:
            parts.pop()
        self._bar.update(self._task, completed=env_steps, status="  ".join(parts))

    def row(self, row: Mapping[str, Any]) -> None:
        """Print one evaluation."""
        if not self._header_shown:
            self.say(_line(self._columns, [column.title for column in self._columns]))
            self._header_shown = True
        self.say(_line(self._columns, [column.text(row) for column in self._columns]))


def fitting(width: int | None) -> tuple[_Column, ...]:
    """The columns that a line of a width has room for, the most important ones; all of them if it has no end."""
    kept = list(COLUMNS)
    while width is not None and sum(GAP + column.width for column in kept) > width and any(c.rank for c in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    return tuple(kept)


def _line(columns: tuple[_Column, ...], texts: list[str]) -> str:
    return "".join(" " * GAP + text.rjust(column.width) for column, text in zip(columns, texts, strict=True)).rstrip()


def _bar_parts(width: int) -> list[tuple[int, ProgressColumn]]:
    """The parts of the bar before its status, with their widths: those that leave room for it on a terminal."""
    bar = 40 if width >= 130 else 10
    return [
        (8, TextColumn("[bold]{task.description}")),
        *([(bar, BarColumn(bar))] if width >= 70 else []),
        (4, TaskProgressColumn()),
        *([(7, TimeElapsedColumn())] if width >= 100 else []),
        (7, TimeRemainingColumn()),
        (4, TextColumn("left")),
    ]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "-"
