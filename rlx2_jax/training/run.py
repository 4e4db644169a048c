"""The host loop: a run over compiled chunks, with everything a person and a restart need.

train = prepare the workdir, compile, start or restore; then
    until the end: one chunk;
        every eval_every steps: report, metrics.jsonl, TensorBoard, policy, curve;
        every checkpoint_every steps, and when asked to stop: checkpoint
    summary
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlx2_jax import envs, policies
from rlx2_jax.config import Config
from rlx2_jax.errors import CheckpointError, DivergedError, FileError
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.runtime import compilation, memory, numerics
from rlx2_jax.training import compute, programs, workdirs
from rlx2_jax.training.display import Display
from rlx2_jax.training.record import Record, Row, Totals, plain_row
from rlx2_jax.training.signals import StopSignals


class Result(NamedTuple):
    """What a run gave."""

    summary: dict[str, Any]
    """As in summary.json; `score` is None before the first evaluation."""
    rows: list[Row]
    """As in metrics.jsonl."""
    policy: policies.Policy
    """The policy at the end."""
    finished: bool
    """False if the run was asked to stop; resume it then."""


class _Compiled(NamedTuple):
    init: Callable[..., Any]
    renew: Callable[..., Any]
    chunk: Callable[..., Any]
    report: Callable[..., Any]
    finite: Callable[..., Any]
    unpack: Callable[..., Any]
    pack: Callable[..., Any]
    actor: Callable[..., Any]
    """The actor's parameters, unpacked."""
    masks: Callable[..., Any]
    """Of both networks, unpacked."""
    template: Any
    """Of a checkpoint: the state, unpacked, so that a run can be resumed in any way of computing."""
    seconds: float
    """That all of it took."""
    parts: dict[str, compilation.Seconds]
    """What each program took of it."""


@numerics.by_usual_rules
@numerics.one_blas_thread()
def train(
    config: Config,
    workdir: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    on_report: Callable[[list[Row]], None] | None = None,
    resume_with: str | None = None,
) -> Result:
    """Train one agent.

    Args:
      config: need not be resolved.
      workdir: where the run leaves its files (see `training.workdir`); None keeps nothing.
      resume: go on from the last good checkpoint in `workdir`, exactly as if the run had never stopped; where nothing
        was saved yet, begin.
      overwrite: replace whatever run `workdir` holds.
      show_progress: lines and a bar on standard error.
      on_report: called after each evaluation with all rows so far.
      resume_with: what a person whose run was stopped is told to go on with (default: a call of this function).

    Returns:
      Summary, evaluations and final policy. On SIGINT, SIGTERM or SIGHUP the run saves, and returns unfinished.

    Raises:
      ConfigError: an impossible configuration, or one that does not fit the device.
      WorkdirError: a workdir that cannot be used.
      FileError: something that cannot be written, such as on a full disk; the last good checkpoint is kept.
      CheckpointError: nothing good to resume from, or a checkpoint that cannot be written.
      DivergedError: values stopped being finite, or the same on all devices; the last good checkpoint is kept.
    """
    compilation.use_cache_by_default()
    program = programs.make_program(config)
    directory = None if workdir is None else Path(workdir)
    if resume and directory is None:
        raise workdirs.WorkdirError("there is nothing to resume without a workdir; name one.")
    size_line = _check_memory(program)
    with contextlib.ExitStack() as stack:
        if directory is not None:
            stack.enter_context(workdirs.held(directory, program.config, resume=resume, overwrite=overwrite))
        assert program.config.total_steps is not None
        display = stack.enter_context(Display(program.config.total_steps, show_progress))
        stop = stack.enter_context(StopSignals(display.say))
        checkpoints = None
        if directory is not None:
            checkpoints = stack.enter_context(Checkpoints(directory, workdirs.checkpoint_identity(program.config)))
        chosen = compute.choose(program.config, display.say)
        if chosen != program.config:
            program = programs.make_program(chosen)
        display.say(_headline(program))
        display.say(size_line)
        if rounded := _rounded(config, program.config):
            display.say(rounded)
        run = _Run(program, Record(program.config, program.env, directory), checkpoints, display, on_report)
        run.start(resume)
        return run.go(stop, resume_with or f"train(config, {str(workdir)!r}, resume=True)")


class _Run:
    """One run's host side. Its state is what the device holds, its record so far, and clocks."""

    def __init__(
        self,
        program: programs.Program,
        record: Record,
        checkpoints: Checkpoints | None,
        display: Display,
        on_report: Callable[[list[Row]], None] | None,
    ):
        self.program = program
        self.config = program.config
        self.record = record
        self.checkpoints = checkpoints
        self.display = display
        self.on_report = on_report
        self.steps = 0
        self.saved_at = -1
        self.training_seconds = 0.0
        self.trained_before = 0.0
        self.evaluation_seconds = 0.0
        self.earlier_seconds = 0.0
        self.began = time.perf_counter()
        self.compiled = _compile(program, display.stage)
        display.say(compilation.describe(self.compiled.parts, self.compiled.seconds))
        display.say(str(memory.need((self.compiled.chunk, self.compiled.report))))
        self.state: Any = None

    def start(self, resume: bool) -> None:
        """Put the state on the device: fresh, or from the last good checkpoint."""
        if resume and self._was_saved():
            assert self.checkpoints is not None
            self.steps, restored, record = self.checkpoints.restore(
                self.compiled.template, warn=self.display.say, kinds={"training_seconds": float, "wall_seconds": float}
            )
            kept = record.get("rows")
            self.state = self.compiled.pack(restored)
            self.saved_at = self.steps
            self.training_seconds = self.trained_before = record["training_seconds"]
            self.earlier_seconds = record["wall_seconds"]
            self.display.say(f"resumed at step {self.steps:,}")
        else:
            kept = []
            self.state = self.compiled.init(jax.random.PRNGKey(self.config.seed), self.program.hparams)
        if told := self.record.open(self.steps, kept):
            self.display.say(told)

    def _was_saved(self) -> bool:
        """Whether there is anything to go on from: there is not, if a run was killed before its first checkpoint."""
        assert self.checkpoints is not None and self.record.directory is not None
        directory = self.record.directory
        if any((directory / "checksums").glob("*.json")):
            return True
        if (directory / "summary.json").exists():
            raise CheckpointError(f"{directory} holds a run whose checkpoints are gone; begin another --workdir.")
        self.checkpoints.forget_incomplete()
        self.display.say(f"nothing was saved in {directory} yet; the run begins at its start")
        return False

    def go(self, stop: StopSignals, resume_with: str = "") -> Result:
        """Run to the end, or until asked to stop; then it is said what to go on with.

        Raises:
          FileError: something cannot be written; it is said what is kept.
          CheckpointError: a checkpoint cannot; it says so itself.
        """
        try:
            return self._go(stop, resume_with)
        except FileError as error:
            raise error.adding(self._kept()) from None

    def _go(self, stop: StopSignals, resume_with: str) -> Result:
        c = self.config
        assert c.total_steps and c.chunk_steps and c.eval_every and c.checkpoint_every
        mark_seconds, mark_steps = self.training_seconds, self.steps
        mark_updates = self._updates()
        while self.steps < c.total_steps and not stop.received:
            began = time.perf_counter()
            self.state = self.compiled.chunk(
                self.compiled.renew(self.state), self.program.hparams, self.program.schedule
            )
            healthy = bool(self.compiled.finite(self.state))
            self.training_seconds += time.perf_counter() - began
            self.steps += c.chunk_steps
            if self.state.apart is not None and self.state.apart:
                self._came_apart()
            if not healthy:
                self._diverged("the networks' parameters are")
            self.display.advance(self.steps, self._status(mark_steps, mark_seconds))
            if self.steps % c.eval_every == 0:
                seconds = max(self.training_seconds - mark_seconds, 1e-9)
                self._evaluate((self.steps - mark_steps) / seconds, (self._updates() - mark_updates) / seconds)
                mark_seconds, mark_steps = self.training_seconds, self.steps
                mark_updates = self._updates()
            if (
                self.steps // c.checkpoint_every > (self.steps - c.chunk_steps) // c.checkpoint_every
                or self.steps == c.total_steps
            ):
                self._checkpoint()
        finished = self.steps >= c.total_steps
        if not finished:
            self._checkpoint()
            self.display.say(f"stopped by {stop.received} at step {self.steps:,}")
            if self.record.directory is not None:
                self.display.say(f"go on with: {resume_with}")
        return self._finish(finished)

    def _updates(self) -> int:
        return int(self.state.progress.critic_calls)

    def _wall_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began

    def _times(self) -> str:
        """What the time since this start went to, and how long the run took in all."""
        here = time.perf_counter() - self.began
        parts = {
            "compiling": self.compiled.seconds,
            "training": self.training_seconds - self.trained_before,
            "evaluating": self.evaluation_seconds,
        }
        parts["else"] = here - sum(parts.values())
        went = ", ".join(f"{seconds:.0f} {what}" for what, seconds in parts.items())
        return (
            f"{self._wall_seconds():,.0f} s in all ({went})"
            if not self.earlier_seconds
            else (f"{self._wall_seconds():,.0f} s in all, {here:.0f} since it was resumed ({went})")
        )

    def _status(self, mark_steps: int, mark_seconds: float) -> str:
        speed = (self.steps - mark_steps) / max(self.training_seconds - mark_seconds, 1e-9)
        last = self.record.rows[-1] if self.record.rows else None
        score = f"return {last['return_mean']:.0f}" if last else "return -"
        return (
            f"{speed:,.0f} steps/s  {score}  sparsity {100 * self.config.actor_sparsity:.3g}%"
            f"/{100 * self.config.critic_sparsity:.3g}%"
        )

    def _evaluate(self, steps_per_second: float, updates_per_second: float) -> None:
        began = time.perf_counter()
        self.state, report = self.compiled.report(
            self.compiled.renew(self.state), self.program.hparams, self.program.schedule
        )
        row = plain_row(report)
        self.evaluation_seconds += time.perf_counter() - began
        if not math.isfinite(row["return_mean"]):
            self._diverged("the evaluated policy's actions or their rewards are")
        row["steps_per_second"] = round(steps_per_second, 1)
        row["updates_per_second"] = round(updates_per_second, 1)
        row["wall_seconds"] = round(self._wall_seconds(), 2)
        self.record.add(row, self.compiled.actor(self.state))
        self.display.row(row)
        self.record.draw()
        if self.on_report is not None:
            self.on_report(self.record.rows)

    def _checkpoint(self) -> None:
        if self.checkpoints is None or self.saved_at == self.steps:
            return
        assert self.record.directory is not None
        workdirs.require_still_there(self.record.directory)
        record = {
            "training_seconds": self.training_seconds,
            "wall_seconds": self._wall_seconds(),
            "rows": self.record.history(),
        }
        self.checkpoints.save(self.steps, self.compiled.unpack(self.state), record)
        self.saved_at = self.steps

    def _diverged(self, what: str) -> None:
        self._finish(finished=False)
        raise DivergedError(
            f"diverged {self._lately()}: {what} no longer finite ({int(self.state.nonfinite):,} non-finite transitions "
            f"were kept out of replay); {self._kept()}; try smaller --critic_lr and --actor_lr."
        )

    def _came_apart(self) -> None:
        self._finish(finished=False)
        raise DivergedError(
            f"{self.config.data_parallel} devices chose different links {self._lately()} ({int(self.state.apart)} "
            f"topology events), so they no longer train one network; {self._kept()}; look for a faulty device, or go "
            "on with --resume --data_parallel=1."
        )

    def _lately(self) -> str:
        return f"between steps {self.steps - (self.config.chunk_steps or 0):,} and {self.steps:,}"

    def _kept(self) -> str:
        return workdirs.kept(self.record.directory, self.saved_at)

    def _finish(self, finished: bool) -> Result:
        totals = Totals(
            env_steps=self.steps,
            updates=self._updates(),
            nonfinite=int(self.state.nonfinite),
            training_seconds=self.training_seconds,
            wall_seconds=self._wall_seconds(),
            compile_seconds=self.compiled.seconds,
            compilation=self.compiled.parts,
        )
        if finished:
            first, final = jax.device_get((self.state.first_masks, self.compiled.masks(self.state)))
            self.record.keep_masks(first, final)
        summary = self.record.close(totals, finished=finished)
        directory = self.record.directory
        if finished:
            self.display.say(
                f"score {summary['score']:.1f} (mean of the last {summary['score_evaluations']} evaluations), "
                f"best {summary['best']:.1f}; size {summary['size_ratio']:.3f} of dense, FLOPs "
                f"{summary['flops_train_ratio']:.3f} to train and {summary['flops_test_ratio']:.3f} to act; "
                f"{summary['updates_per_second']:,.0f} updates/s, {self._times()}"
                + ("" if directory is None else f"; files in {directory}")
            )
        about = self.record.about() | {"env_steps": self.steps}
        return Result(summary, self.record.rows, policies.Policy(self.compiled.actor(self.state), about), finished)


def _compile(program: programs.Program, say: Callable[[str], None]) -> _Compiled:
    """Compile each of a run's programs once, side by side."""
    began = time.perf_counter()
    key = jax.random.PRNGKey(0)
    sharding = program.share.sharding
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    template = jax.tree.map(placed, jax.eval_shape(program.init, key, program.hparams))
    arguments = (template, program.hparams, program.schedule)
    plain = program.config.compute != "packed" and sharding is None
    part = compilation.Part
    parts = {
        "chunk": part(jax.jit(program.chunk, donate_argnums=0), arguments),
        "report": part(jax.jit(program.report, donate_argnums=0), arguments),
        "renew": part(jax.jit(program.renew, donate_argnums=0), (template,)),
        "init": part(jax.jit(program.init), (key, program.hparams)),
        "finite": part(jax.jit(programs.finite), (template,)),
    }
    compiled, seconds = compilation.compile_parts(parts, say)
    return _Compiled(
        **compiled,
        unpack=_same if plain else jax.jit(programs.unpack),
        pack=_same if plain else jax.jit(program.pack),
        actor=jax.jit(_actor),
        masks=jax.jit(_masks),
        template=jax.tree.map(placed, jax.eval_shape(programs.unpack, template)),
        seconds=time.perf_counter() - began,
        parts=seconds,
    )


def _same(state: Any) -> Any:
    return state


def _actor(state: programs.TrainState) -> Any:
    return programs.unpack(state).agent.actor.params


def _masks(state: programs.TrainState) -> Any:
    return programs.agent_masks(state.agent)


def _check_memory(program: programs.Program) -> str:
    """One line on what the run will hold; refuses what the device cannot."""
    state = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
    replay, agent = memory.tree_bytes(state.replay), memory.tree_bytes(state.agent)
    # Devices of a CPU share its memory, and each has a copy.
    copies = program.share.count if jax.default_backend() == "cpu" else 1
    memory.check_fits(
        copies * memory.tree_bytes(state),
        f"replay ({memory.format_bytes(replay)}) and networks ({memory.format_bytes(agent)})",
        "lower --buffer_max or --hidden",
    )
    return (
        f"replay {memory.format_bytes(replay)} for {program.config.buffer_max:,} transitions, "
        f"networks and optimiser {memory.format_bytes(agent)}"
    )


def _rounded(asked: Config, resolved: Config) -> str | None:
    """One line on a length that is not the one asked for, if any is not."""
    changed = [
        f"{name}={getattr(resolved, name):,} for {getattr(asked, name):,}"
        for name in ("total_steps", "eval_every", "chunk_steps")
        if getattr(asked, name) not in (None, getattr(resolved, name))
    ]
    return f"rounded to whole evaluations, chunks and iterations: {', '.join(changed)}" if changed else None


def _headline(program: programs.Program) -> str:
    c = program.config
    return (
        f"{c.method} {c.agent} on {c.env}"
        + ("" if c.backend == envs.JAX else f" ({c.backend})")
        + f", sparsity {100 * c.actor_sparsity:.3g} % actor, {100 * c.critic_sparsity:.3g} % critic; "
        f"{c.total_steps:,} steps, {c.num_envs} environments, seed {c.seed}; {c.compute} compute, "
        f"{jax.devices()[0].device_kind}" + (f" x {c.data_parallel}" if c.data_parallel > 1 else "")
    )
