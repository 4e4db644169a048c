"""From what a person writes to what a run is: every setting checked, and what was left open filled in."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from fractions import Fraction
from typing import Any, NamedTuple

from rlx2_jax import envs
from rlx2_jax.config import methods, registry
from rlx2_jax.config.config import MOST_STEPS, Config, RunConfig
from rlx2_jax.config.fields import NEVER, check_kind, check_value, require
from rlx2_jax.errors import ConfigError

PAPER_STEPS = 3_000_000
"""Length of the paper's runs, which its schedules belong to."""

QUICK_TASKS = ("inverted_pendulum", "InvertedPendulum-v4", "InvertedPendulum-v5")
"""Tasks, beside probes, that are learned in minutes."""

EVAL_EVERY = 5_000
"""Environment steps between evaluations, at most, where MuJoCo's C library plays them."""

JAX_EVAL_EVERY = 25_000
"""The same where physics is a JAX program."""

LEAST_KEPT = 5_000
"""Environment steps between checkpoints, at least: a short run would save for as long as it trains."""

PACKED_DEPTH = 15
"""Most hidden layers that packed compute takes."""


def resolve(config: Config) -> RunConfig:
    """Check a configuration and fill in every field left at None but the ticket and the critics' networks.

    Change settings before resolving, not after: what is filled in belongs to the method and the length it was filled in
    for. Resolving twice changes nothing.

    Raises:
      ConfigError: one sentence on what cannot be and how to mend it.
    """
    _check_fields(config)
    asked = _asked_steps(config)
    _check_updates(config)
    scale = _schedule_scale(config, asked)
    backend = envs.choose_backend(config.env, config.backend)
    length = _length(config, asked, backend)
    mechanisms = _mechanisms(config)
    experience = _experience(config, length.total_steps, mechanisms.n_max, scale)
    parts: tuple[NamedTuple, ...] = (length, mechanisms, experience, _intervals(config, scale))
    filled: dict[str, Any] = {name: value for part in parts for name, value in part._asdict().items()}
    filled |= {
        "backend": backend,
        "schedule_scale": scale,
        "update_ratio": config.ratio,
        "policy_delay": config.delay,
        "actor_sparsity": config.sparsity("actor"),
        "critic_sparsity": config.sparsity("critic"),
    }
    resolved = RunConfig(**vars(config) | filled)
    _check_together(resolved)
    _check_fields(resolved)
    return resolved


def written(config: RunConfig) -> dict[str, Any]:
    """The settings that a person has to write for a run, in the order of their declaration: `resolve` finds the others.

    Of two settings of which each would do alone, the one that is declared first is written.

    Raises:
      ConfigError: the configuration cannot be resolved here, for instance because a method of one's own is not there.
    """
    kept = vars(resolve(config))
    for name in reversed(tuple(kept)):
        fewer = {other: value for other, value in kept.items() if other != name}
        with contextlib.suppress(ConfigError):
            if resolve(Config(**fewer)) == config:
                kept = fewer
    return kept


def _check_fields(config: Config) -> None:
    """Refuse what a field cannot be, whatever the others are; fields that are left to be derived can be anything."""
    for field in dataclasses.fields(Config):
        check_kind(field, getattr(config, field.name))
        if (value := getattr(config, field.name)) is not None:
            check_value(field, value)


def _is_quick(c: Config) -> bool:
    return c.env in QUICK_TASKS or c.env.startswith("probe/")


def _asked_steps(c: Config) -> int:
    """Environment steps, before they are rounded to whole evaluations."""
    E, total = c.num_envs, c.total_steps
    if total is None:
        total = registry.find(c.agent).defaults.quick_steps if _is_quick(c) else 1_000_000
    require(total >= E, f"total_steps={total} is less than one step of num_envs={E} environments; use at least {E}.")
    updates = total * c.ratio
    require(updates <= NEVER, f"update_ratio={c.ratio:g} makes {updates:.2g} updates; use at most {NEVER}.")
    return total


def _check_updates(c: Config) -> None:
    """An iteration must hold whole cycles of updates, after not too many steps."""
    asked, cycles, E = c.num_envs * c.ratio / c.delay, c.cycles_per_step, c.num_envs
    nearest = max(cycles, Fraction(1, MOST_STEPS)) * c.delay / E
    require(
        math.isclose(asked, cycles, rel_tol=1e-5),
        f"update_ratio={c.ratio:g} x num_envs={E}: no iteration of up to {MOST_STEPS} steps holds whole cycles of "
        f"policy_delay={c.delay} updates; use an update_ratio of {float(nearest):.9g}.",
    )


def _schedule_scale(c: Config, asked: int) -> float:
    scale = asked / PAPER_STEPS if c.schedule_scale is None else c.schedule_scale
    longest = NEVER // PAPER_STEPS / max(1.0, c.ratio)
    require(0 < scale <= longest, f"schedule_scale={scale:g}: use a positive factor of at most {longest:g}.")
    return scale


def _eval_every(c: Config, asked: int, backend: str) -> int:
    """Steps between two evaluations of 10,000 steps each, such that they take about a fifth of a run's time or less.

    MuJoCo's C library plays them many times faster than a run trains. Physics in JAX is as slow there as in
    training: a run looks five times less often, and short ones of slow tasks only four times.
    """
    most = EVAL_EVERY if backend == envs.MUJOCO else JAX_EVAL_EVERY
    return min(most, math.ceil(asked / _evaluations(c)))


def _evaluations(c: Config) -> int:
    """The fewest evaluations of a run, where nobody says how far apart they are."""
    return 20 if _is_quick(c) else 4


class _Length(NamedTuple):
    """Environment steps of a run and of its parts."""

    total_steps: int
    eval_every: int
    chunk_steps: int
    checkpoint_every: int
    score_evaluations: int
    """A count."""


def _length(c: Config, asked: int, backend: str) -> _Length:
    """Whole iterations make a chunk, whole chunks an evaluation, whole evaluations the run."""
    eval_every = _eval_every(c, asked, backend) if c.eval_every is None else c.eval_every
    chunk_steps = min(1000, eval_every) if c.chunk_steps is None else c.chunk_steps
    require(
        0 < chunk_steps <= eval_every <= asked,
        f"chunk_steps={chunk_steps}, eval_every={eval_every} and total_steps={asked} must not decrease; "
        "use 1 <= chunk_steps <= eval_every <= total_steps.",
    )
    chunk_steps = _round_to(chunk_steps, c.steps_per_iteration)
    eval_every = _round_to(eval_every, chunk_steps)
    evaluations, longer = math.ceil(asked / eval_every), eval_every + chunk_steps
    if c.eval_every is None and (fewer := math.ceil(asked / longer)) >= _evaluations(c):
        # Nobody asked for it: a chunk more, where whole evaluations then come nearer to the length asked for.
        eval_every, evaluations = min((eval_every, evaluations), (longer, fewer), key=lambda length: math.prod(length))
    total = evaluations * eval_every
    return _Length(
        total_steps=total,
        eval_every=eval_every,
        chunk_steps=chunk_steps,
        checkpoint_every=max(math.ceil(total / 20), LEAST_KEPT) if c.checkpoint_every is None else c.checkpoint_every,
        score_evaluations=(max(3, min(30, evaluations // 10)) if c.score_evaluations is None else c.score_evaluations),
    )


class _Mechanisms(NamedTuple):
    """What the method does, as far as it is not overruled."""

    topology: str
    n_step: int
    n_max: int
    dynamic_buffer: bool


def _mechanisms(c: Config) -> _Mechanisms:
    row = methods.find(c.method)
    n_step = row.n_step if c.n_step is None else c.n_step
    require(n_step >= 1, f"n_step={n_step}: a TD target spans at least 1 step.")
    n_max = max(3, n_step) if c.n_max is None else c.n_max
    require(n_step <= n_max, f"n_step={n_step} is over n_max={n_max}; raise n_max to {n_step}.")
    topology = row.topology if c.topology is None else c.topology
    require(
        row.grow is None or topology in ("fixed", row.topology),
        f"method={c.method} says itself what grows; leave out topology={topology}, or use topology=fixed.",
    )
    require(
        row.progress is None or topology != "fixed",
        f"method={c.method} changes the number of links, which topology=fixed does not let it; leave that out.",
    )
    return _Mechanisms(
        topology=topology,
        n_step=n_step,
        n_max=n_max,
        dynamic_buffer=row.dynamic_buffer if c.dynamic_buffer is None else c.dynamic_buffer,
    )


class _Experience(NamedTuple):
    """What is collected before learning begins, and what is kept, in transitions."""

    warmup_steps: int
    buffer_max: int
    buffer_min: int


def _experience(c: Config, total: int, n_max: int, scale: float) -> _Experience:
    window = (n_max + 2) * c.num_envs
    needed = max(c.batch_size, window)
    warmup = _scaled(c.warmup_steps, 25_000 * scale, least=needed)
    require(warmup >= window, f"warmup_steps={warmup} does not fill one window; use at least {window}.")
    begins = math.ceil(warmup / c.steps_per_iteration) * c.steps_per_iteration
    require(total > begins, f"total_steps={total} ends in the warm-up; use more than {begins} steps.")
    buffer_max = c.buffer_max
    if buffer_max is None:
        buffer_max = min(registry.find(c.agent).defaults.buffer_max, total)
    buffer_min = c.buffer_min
    if buffer_min is None:
        paper = registry.find(c.agent).defaults.buffer_min
        buffer_min = min(_scaled(None, paper * scale, least=max(8 * c.batch_size, needed)), buffer_max)
    require(
        buffer_max >= needed,
        f"a batch of {c.batch_size} or a window of {window} does not fit a buffer of {buffer_max}; use buffer_max of "
        f"at least {needed}.",
    )
    require(
        needed <= buffer_min <= buffer_max,
        f"buffer_min={buffer_min} must lie between {needed} (one batch or window) and buffer_max={buffer_max}.",
    )
    return _Experience(warmup, buffer_max, buffer_min)


class _Intervals(NamedTuple):
    """When what happens again and again is due."""

    evolve_interval: int
    """Optimiser calls."""
    n_step_delay: int
    """Critic updates."""
    buffer_check_interval: int
    """Environment steps."""


def _intervals(c: Config, scale: float) -> _Intervals:
    # The paper makes an update per step, so what it counts in updates is as much in steps.
    S, U = c.steps_per_iteration, c.updates_per_iteration
    return _Intervals(
        evolve_interval=_scaled(c.evolve_interval, 10_000 * U / S * scale, least=U),
        n_step_delay=_scaled(c.n_step_delay, 300_000 * U / S * scale),
        buffer_check_interval=_scaled(c.buffer_check_interval, 10_000 * scale, least=S),
    )


def _scaled(value: int | None, derived: float, least: int = 1) -> int:
    """The value that is given, or a derived one, rounded."""
    return max(least, round(derived)) if value is None else value


def _round_to(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _check_together(c: RunConfig) -> None:
    devices = c.data_parallel
    require(
        c.batch_size % devices == 0,
        f"batch_size={c.batch_size} is not divided by data_parallel={devices} devices; use a batch_size of "
        f"{math.ceil(c.batch_size / devices) * devices}.",
    )
    require(
        len(c.hidden) >= 1 and all(isinstance(h, int) and h >= 1 for h in c.hidden),
        f"hidden={c.hidden}: name at least one width, each a whole number of 1 or more.",
    )
    require(
        c.compute != "packed" or len(c.hidden) <= PACKED_DEPTH,
        f"hidden has {len(c.hidden)} widths and packed compute takes {PACKED_DEPTH}; use compute=masked.",
    )
    if c.compute == "packed":
        for name in ("reset_moments", "mask_initial_targets"):
            require(
                getattr(c, name),
                f"{name}=False needs values off the links, which packed compute does not keep; use compute=masked.",
            )
    _check_changing(c)


def _check_changing(c: RunConfig) -> None:
    """What a method needs whose number of links changes."""
    if methods.find(c.method).progress is None:
        return
    updates = int(c.updates * c.evolve_until)
    require(
        updates >= c.policy_delay,
        f"method={c.method} changes the number of links, and evolve_until={c.evolve_until:g} leaves no update to do it "
        "in; use more of the run.",
    )
