"""A run over compiled chunks, with everything a person and a restart need.

In short:

    train = prepare the workdir, compile, start or restore; then `training.loop`, in which
        evaluate:   report, metrics.jsonl, loggers, policy, curve
        checkpoint: the whole state, and the rows so far
        finish:     summary, and the masks of a run that came to its end
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from rlx2_jax import envs, policies
from rlx2_jax.config import Config
from rlx2_jax.errors import CheckpointError, DivergedError, FileError
from rlx2_jax.io import files
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.runtime import compilation, memory, numerics
from rlx2_jax.training import compute, loggers, loop, programs, workdirs
from rlx2_jax.training.compiled import Compiled, compile_functions
from rlx2_jax.training.display import Display
from rlx2_jax.training.record import Record, Row, Totals, plain_row
from rlx2_jax.training.signals import StopSignals


class Result(NamedTuple):
    """What a run gave."""

    summary: dict[str, Any]
    """Values as in summary.json; `score` is None before the first evaluation."""
    rows: list[Row]
    """Rows as in metrics.jsonl."""
    policy: policies.Policy
    """The policy at the end."""
    finished: bool
    """False if the run was asked to stop; resume it then."""


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
      workdir: where the run leaves its files (see `training.workdirs`); None keeps nothing.
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
      DivergedError: values stopped being finite, or the same on all devices; the last good checkpoint, if there is one,
        is kept.
    """
    compilation.use_cache_by_default()
    program = programs.make_program(config)
    loggers.require(program.config)
    directory = None if workdir is None else Path(workdir)
    if resume and directory is None:
        raise workdirs.WorkdirError("there is nothing to resume without a workdir; name one.")
    size_line = _check_memory(program)
    with contextlib.ExitStack() as stack:
        if directory is not None:
            stack.enter_context(workdirs.held(directory, program.config, resume=resume, overwrite=overwrite))
        display = stack.enter_context(Display(program.config.total_steps, show_progress))
        stop = stack.enter_context(StopSignals(display.say))
        checkpoints = None
        if directory is not None:
            checkpoints = stack.enter_context(Checkpoints(directory, workdirs.checkpoint_identity(program.config)))
        chosen = compute.choose(program.config, display.say)
        if chosen != program.config:
            program = programs.make_program(chosen)
            size_line = _check_memory(program)
        for line in (_headline(program), size_line, *_rounded(config, program.config)):
            display.say(line)
        record = Record(program.config, program.env, directory, display.say)
        told = resume_with or f"train(config, {str(workdir)!r}, resume=True)"
        run = _Run(program, record, checkpoints, display, stop, on_report, told)
        run.start(resume)
        return run.go()


class _Run:
    """One run's host side: what the loop drives. Its state is what the device holds, its record so far, and a clock."""

    def __init__(
        self,
        program: programs.Program,
        record: Record,
        checkpoints: Checkpoints | None,
        display: Display,
        stop: StopSignals,
        on_report: Callable[[list[Row]], None] | None,
        resume_with: str,
    ):
        self.program = program
        self.config = program.config
        self.record = record
        self.checkpoints = checkpoints
        self.display = display
        self.stop = stop
        self.on_report = on_report
        self.resume_with = resume_with
        self.clock = loop.Clock()
        self.saved_at = -1
        self.summary: dict[str, Any] = {}
        self.compiled = _compile(program, display.stage)
        display.say(compilation.describe(self.compiled.parts, self.compiled.seconds))
        display.say(str(memory.need((self.compiled.chunk, self.compiled.report))))
        # Checkpoints are unpacked and of one device, so that a run can be resumed in any way of computing.
        plain = self.config.compute != "packed" and program.devices.sharding is None
        self.unpack = _same if plain else jax.jit(programs.unpack)
        self.pack = _same if plain else jax.jit(program.pack)
        self.seen = jax.jit(_seen)
        self.state: Any = None

    def start(self, resume: bool) -> None:
        """Put the state on the device: fresh, or from the last good checkpoint."""
        if resume and self._was_saved():
            assert self.checkpoints is not None
            template = _placed(jax.eval_shape(programs.unpack, self.compiled.template), self.program)
            step, restored, record = self.checkpoints.restore(template, warn=self.display.say, kinds=loop.SECONDS)
            kept = record.get("rows")
            self.state = self.pack(restored)
            self.clock.resume(step, record)
            self.saved_at = step
            self.display.say(f"resumed at step {step:,}")
        else:
            kept = []
            self.state = self.compiled.init(jax.random.PRNGKey(self.config.seed), self.program.hparams)
        for told in self.record.open(self.clock.steps, kept, jax.device_get(self.state.first_masks)):
            self.display.say(told)

    def _was_saved(self) -> bool:
        """Whether there is anything to go on from: there is not, if a run was killed before its first checkpoint.

        Raises:
          DivergedError: it diverged before that, and would again.
          CheckpointError: its checkpoints are gone.
        """
        assert self.checkpoints is not None and self.record.directory is not None
        directory = self.record.directory
        if any((directory / "checksums").glob("*.json")):
            return True
        if summary := files.read_json(directory / "summary.json", {}):
            if summary.get("diverged"):
                raise DivergedError(
                    f"{directory} holds a run that diverged before its first checkpoint; try smaller --critic_lr and "
                    "--actor_lr with --overwrite."
                )
            raise CheckpointError(f"{directory} holds a run whose checkpoints are gone; begin another --workdir.")
        self.checkpoints.forget_incomplete()
        self.display.say(f"nothing was saved in {directory} yet; the run begins at its start")
        return False

    def go(self) -> Result:
        """Run to the end, or until asked to stop; then it is said what to go on with.

        Raises:
          FileError: something cannot be written; it is said what is kept.
          CheckpointError: a checkpoint cannot; it says so itself.
        """
        try:
            finished = loop.go(self, self.clock, self.config)
        except FileError as error:
            raise error.adding(self._kept()) from None
        about = self.record.about() | {"env_steps": self.clock.steps}
        return Result(self.summary, self.record.rows, policies.Policy(self.seen(self.state)[0], about), finished)

    def advance(self) -> np.ndarray:
        """Train for a chunk (see `loop.Executor`, as for the following)."""
        state = self.compiled.renew(self.state)
        self.state = self.compiled.chunk(state, self.program.hparams, self.program.schedule)
        return np.asarray(self.compiled.finite(self.state))

    def examine(self, finite: np.ndarray) -> None:
        """End a run whose devices came apart, or that diverged; else move the bar."""
        if self.state.apart is not None and self.state.apart:
            self._came_apart()
        if not finite:
            self._diverged("the networks' parameters are")
        self.display.advance(self.clock.steps, self._status())

    def updates(self) -> int:
        """Updates made so far."""
        return int(self.state.progress.critic_calls)

    def evaluate(self, rates: loop.Rates) -> None:
        """Report, and all that is made of it."""
        with self.clock.evaluation():
            state = self.compiled.renew(self.state)
            self.state, report = self.compiled.report(state, self.program.hparams, self.program.schedule)
            row = plain_row(report)
        if not math.isfinite(row["return_mean"]):
            self._diverged("the evaluated policy's actions or their rewards are")
        row |= self.clock.columns(rates)
        self.record.add(row, *self.seen(self.state))
        self.display.row(row)
        self.record.draw()
        if self.on_report is not None:
            self.on_report(self.record.rows)

    def checkpoint(self) -> None:
        """Save the state and the rows, where there is a workdir, unless they are saved already."""
        step = self.clock.steps
        if self.checkpoints is None or self.saved_at == step:
            return
        assert self.record.directory is not None
        workdirs.require_still_there(self.record.directory)
        record = self.clock.seconds() | {"rows": self.record.history()}
        self.checkpoints.save(step, self.unpack(self.state), record)
        self.saved_at = step

    def stopping(self) -> bool:
        """Whether a signal came."""
        return self.stop.received is not None

    def finish(self, done: bool) -> None:
        """Write the summary, and say how it ended."""
        if not done:
            self.display.say(f"stopped by {self.stop.received} at step {self.clock.steps:,}")
            if self.record.directory is not None:
                self.display.say(f"go on with: {self.resume_with}")
        self._close(done)
        if done:
            self.display.say(self._last_words())

    def _close(self, done: bool, *, diverged: bool = False) -> None:
        totals = Totals(
            env_steps=self.clock.steps,
            updates=self.updates(),
            nonfinite=int(self.state.nonfinite),
            compile_seconds=self.compiled.seconds,
            compilation=self.compiled.parts,
            **self.clock.seconds(),
        )
        if done:
            self.record.keep_masks(*jax.device_get((self.state.first_masks, self.seen(self.state)[1])))
        self.summary = self.record.close(totals, finished=done, diverged=diverged)

    def _diverged(self, what: str) -> NoReturn:
        self._close(done=False, diverged=True)
        left_out = int(self.state.nonfinite)
        none = left_out >= self.clock.steps
        mend = "mend the environment, which gave no other" if none else "try smaller --critic_lr and --actor_lr"
        raise DivergedError(
            f"diverged {self._lately()}: {what} no longer finite ({left_out:,} non-finite transitions were kept out of "
            f"replay); {self._kept()}; {mend}."
        )

    def _came_apart(self) -> NoReturn:
        self._close(done=False)
        raise DivergedError(
            f"{self.config.data_parallel} devices chose different links {self._lately()} ({int(self.state.apart)} "
            f"topology events), so they no longer train one network; {self._kept()}; look for a faulty device, or "
            + ("begin again with --overwrite" if self.saved_at < 0 else "go on with --resume")
            + " --data_parallel=1."
        )

    def _lately(self) -> str:
        return f"between steps {self.clock.steps - self.config.chunk_steps:,} and {self.clock.steps:,}"

    def _kept(self) -> str:
        return workdirs.kept(self.record.directory, self.saved_at)

    def _status(self) -> str:
        last = self.record.rows[-1] if self.record.rows else None
        score = f"return {last['return_mean']:.0f}" if last else "return -"
        return (
            f"{self.clock.speed():,.0f} steps/s  {score}  sparsity {100 * self.config.actor_sparsity:.3g}%"
            f"/{100 * self.config.critic_sparsity:.3g}%"
        )

    def _last_words(self) -> str:
        summary, directory = self.summary, self.record.directory
        return (
            f"score {summary['score']:.1f} (mean of the last {summary['score_evaluations']} evaluations), "
            f"best {summary['best']:.1f}; size {summary['size_ratio']:.3f} of dense, FLOPs "
            f"{summary['flops_train_ratio']:.3f} to train and {summary['flops_test_ratio']:.3f} to act; "
            f"{summary['updates_per_second']:,.0f} updates/s, {self._times()}"
            + ("" if directory is None else f"; files in {directory}")
        )

    def _times(self) -> str:
        """What the time since this start went to, and how long the run took in all."""
        clock, here = self.clock, self.clock.since_start()
        parts = {"compiling": self.compiled.seconds, "training": clock.training, "evaluating": clock.evaluating}
        parts["else"] = here - sum(parts.values())
        went = ", ".join(f"{seconds:.0f} {what}" for what, seconds in parts.items())
        resumed = f", {here:.0f} since it was resumed" if clock.earlier["wall_seconds"] else ""
        return f"{clock.seconds()['wall_seconds']:,.0f} s in all{resumed} ({went})"


def _compile(program: programs.Program, say: Callable[[str], None]) -> Compiled:
    """Compile each of a run's programs once, side by side."""
    began = time.perf_counter()
    key = jax.random.PRNGKey(0)
    template = _placed(jax.eval_shape(program.init, key, program.hparams), program)
    functions = {
        "chunk": jax.jit(program.chunk, donate_argnums=0),
        "report": jax.jit(program.report, donate_argnums=0),
        "renew": jax.jit(program.renew, donate_argnums=0),
        "init": jax.jit(program.init),
        "finite": jax.jit(programs.finite),
    }
    quick = program.config.compute == "packed"
    return compile_functions(
        functions, template, key, program.hparams, program.schedule, began=began, say=say, quick=quick
    )


def _placed(shapes: Any, program: programs.Program) -> Any:
    """Shapes on the devices of a run."""
    sharding = program.devices.sharding
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _same(state: Any) -> Any:
    return state


def _seen(state: programs.TrainState) -> tuple[Any, Any]:
    """What an evaluation keeps: the actor's parameters, and the masks of both networks."""
    return programs.unpack(state).agent.actor.params, programs.agent_masks(state.agent)


def _check_memory(program: programs.Program) -> str:
    """One line on what the run will hold; refuses what the device cannot."""
    state = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
    replay, agent = memory.tree_bytes(state.replay), memory.tree_bytes(state.agent)
    # Devices of a CPU share its memory, and each has a copy.
    copies = program.devices.count if jax.default_backend() == "cpu" else 1
    memory.check_fits(
        copies * memory.tree_bytes(state),
        f"replay ({memory.format_bytes(replay)}) and networks ({memory.format_bytes(agent)})",
        "lower --buffer_max or --hidden",
    )
    return (
        f"replay {memory.format_bytes(replay)} for {program.config.buffer_max:,} transitions, "
        f"networks and optimiser {memory.format_bytes(agent)}"
    )


def _rounded(asked: Config, resolved: Config) -> list[str]:
    """One line on the lengths that are not the ones asked for, if any is not."""
    changed = [
        f"{name}={getattr(resolved, name):,} for {getattr(asked, name):,}"
        for name in ("total_steps", "eval_every", "chunk_steps")
        if getattr(asked, name) not in (None, getattr(resolved, name))
    ]
    return [f"rounded to whole evaluations, chunks and iterations: {', '.join(changed)}"] if changed else []


def _headline(program: programs.Program) -> str:
    c = program.config
    environments = f"{c.num_envs} environment" + ("s" if c.num_envs > 1 else "")
    return (
        f"{c.method} {c.agent} on {c.env}"
        + ("" if c.backend == envs.JAX else f" ({c.backend})")
        + f", sparsity {100 * c.actor_sparsity:.3g} % actor, {100 * c.critic_sparsity:.3g} % critic; "
        f"{c.total_steps:,} steps, {environments}, seed {c.seed}; {c.compute} compute, "
        f"{jax.devices()[0].device_kind}" + (f" x {c.data_parallel}" if c.data_parallel > 1 else "")
    )
