"""Behaviour cloning: a sparse actor that imitates a trained policy, with a topology that is fixed or evolves.

    clone  = collect, then evaluations x (updates, report)
    collect: the teacher acts in the environments with exploration noise; kept are the observations, and beside each
             the action that the teacher would have taken there without noise
    update : one Adam step on the mean squared error of the actor's noise-free actions, on a batch of those;
             a topology event if due, its grow score the dense gradient of the same error

A clone is described by a `Config`, and its actor begins as that of the reinforcement learning run of the same `Config`
does: with the same weights, and with the same mask or ticket. What the fields mean here:

| field | here |
|---|---|
| `total_steps`, `eval_every`, `evolve_interval` | in updates |
| `buffer_max` | observations collected |
| `explore_noise` | standard deviation of the noise while collecting |
| `batch_size`, `actor_lr` | of an update |
| `method`, `topology`, `drop_fraction`, `evolve_until`, `actor_sparsity`, `ticket` | of the actor, as ever |

There is no critic, and what concerns one, targets or replay has no effect; a method that changes the number of links,
of critics too, is refused. Of a SAC actor the mean is trained; nothing
teaches its standard deviation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from rlx2_jax import policies
from rlx2_jax.config import Config
from rlx2_jax.errors import DivergedError
from rlx2_jax.io import files, provenance
from rlx2_jax.policies import tickets
from rlx2_jax.runtime import memory, numerics
from rlx2_jax.training import compute, loop, workdirs
from rlx2_jax.training.imitation import Cloning, make_cloning
from rlx2_jax.training.record import Row, plain_row


class Clone(NamedTuple):
    """What imitation gave."""

    rows: list[Row]
    """One per evaluation: `updates`, `return_mean`, `return_std`, `loss` (mean since the row before), `actor_sparsity`,
    `links_dropped`, `links_grown`."""
    policy: policies.Policy
    """At the end."""
    masks: tickets.Ticket
    """At the beginning and at the end. The critics' are those that a run of this configuration begins with."""


@numerics.by_usual_rules
@numerics.one_blas_thread()
def clone(
    config: Config,
    teacher: policies.Policy,
    workdir: str | Path | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Clone:
    """Train an actor to act as a teacher does. The same configuration and teacher give the same clone.

    Args:
      config: need not be resolved; see the table above.
      teacher: of the same task, sparse or not, of any agent.
      workdir: where to leave config.json, after each evaluation metrics.jsonl and summary.json, and at the end
        policy.npz, masks.npz and, last, a summary.json that says finished; None keeps nothing. A clone that was stopped
        begins anew, with `overwrite`.
      overwrite: replace whatever run or clone `workdir` holds.
      say: takes a line per evaluation.

    Raises:
      ConfigError: an impossible configuration, a method that changes the number of links, or a teacher of another task.
      CheckpointError: a ticket that cannot be read.
      WorkdirError: a workdir that cannot be used.
      DivergedError: the error stopped being finite.
    """
    cloning = make_cloning(config, teacher)
    memory.check_fits(
        memory.tree_bytes(jax.eval_shape(cloning.collect, teacher.params, jax.random.PRNGKey(0))),
        "examples",
        "lower --buffer_max",
    )
    directory = None if workdir is None else Path(workdir)
    if directory is None:
        return _clone(cloning, teacher, None, say)
    with workdirs.held(directory, cloning.config, resume=None, overwrite=overwrite):
        return _clone(cloning, teacher, directory, say)


def _clone(cloning: Cloning, teacher: policies.Policy, directory: Path | None, say: Callable[[str], None]) -> Clone:
    clock = loop.Clock()
    chosen = compute.choose(cloning.config, say)
    if chosen != cloning.config:
        cloning = make_cloning(chosen, teacher)
    run = _Run(cloning, teacher, directory, say, clock)
    # A chunk is what is learned between two evaluations.
    loop.go(run, clock, dataclasses.replace(chosen, chunk_steps=chosen.eval_every))
    return run.result


class _Run:
    """One clone's host side: what the loop drives (see `loop.Executor`)."""

    result: Clone
    """Once it is finished."""

    def __init__(
        self,
        cloning: Cloning,
        teacher: policies.Policy,
        directory: Path | None,
        say: Callable[[str], None],
        clock: loop.Clock,
    ):
        self.config = cloning.config
        self.directory = directory
        self.say = say
        self.clock = clock
        self.sizes, self.labels = teacher.sizes, teacher.labels
        self.rows: list[Row] = []
        key = jax.random.PRNGKey(self.config.seed)
        self.state, first = jax.jit(cloning.init)(key)
        self.first = jax.device_get(first)
        self.examples = jax.jit(cloning.collect)(teacher.params, key)
        self.learn, self.report = (jax.jit(f, donate_argnums=0) for f in (cloning.learn, cloning.report))

    def advance(self) -> np.ndarray:
        """Learn until the next evaluation."""
        self.state = self.learn(self.state, self.examples)
        return np.isfinite(self.state.loss)

    def examine(self, finite: np.ndarray) -> None:
        """End a clone that diverged."""
        if not finite:
            self._diverged()

    def updates(self) -> int:
        """Updates made so far, which are its steps."""
        return self.clock.steps

    def evaluate(self, rates: loop.Rates) -> None:
        """Make a row, and write what there is."""
        self.state, values = self.report(self.state)
        row = plain_row(values)
        if not math.isfinite(row["return_mean"]):
            self._diverged()
        self.rows.append(row)
        self._write()
        self.say(f"update {row['updates']:,}: return {row['return_mean']:.1f}, error {row['loss']:.2g}")

    def checkpoint(self) -> None:
        """Save nothing: a clone that was stopped begins anew."""

    def stopping(self) -> bool:
        """Whether it was asked to stop; it hears nothing, and its process is ended instead."""
        return False

    def finish(self, done: bool) -> None:
        """Make the result, and write it."""
        actor, c = jax.device_get(jax.jit(lambda actor: actor.masked())(self.state.actor)), self.config
        about = policies.describe(c, c.buffer_max, self.rows[-1]["return_mean"], self.sizes, self.labels) | {
            "updates": c.total_steps
        }
        masks = tickets.Ticket(self.first, self.first | {"actor": actor.mask}, about)
        self.result = Clone(self.rows, policies.Policy(actor.params, about), masks)
        if self.directory is not None:
            policies.save(self.directory / "policy.npz", actor.params, about)
            tickets.save(self.directory / tickets.NAME, masks.initial, masks.final, about)
        self._write(finished=done)

    def _diverged(self) -> NoReturn:
        self._write()
        raise DivergedError(
            f"cloning diverged before update {self.clock.steps:,}: its error or its actions are not finite; try "
            "a smaller --actor_lr."
        )

    def _write(self, *, finished: bool = False) -> None:
        if self.directory is None:
            return
        files.write_json_lines(self.directory / "metrics.jsonl", self.rows)
        last: Mapping[str, Any] = self.rows[-1] if self.rows else {}
        summary = {
            "finished": finished,
            "updates": last.get("updates", 0),
            "best": max((row["return_mean"] for row in self.rows), default=None),
            "last": last.get("return_mean"),
            "loss": last.get("loss"),
            "wall_seconds": self.clock.since_start(),
            "compute": self.config.compute,
            **provenance.about(),
        }
        files.write_json(self.directory / "summary.json", summary)
