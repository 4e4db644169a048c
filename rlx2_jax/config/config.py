"""What a run is: one frozen `Config`, and the traced values (`HParams`, `Schedule`) made from it.

Three types, because three things can happen to a setting:

* `Config`: what a person writes, flat, every field a command-line flag. Its shapes and names (environment, widths,
  number of environments) are *static*: changing one makes another program.
* `HParams`: scalars that one compiled program takes as data and that may differ between the runs of a `vmap`:
  learning rates, discounts, method and sparsity (as numbers of links), buffer sizes.
* `Schedule`: when things happen. Traced too, but never batched, so that every `lax.cond` reading it stays a branch.

Numbers are the paper's ("Training a Sparse Deep Reinforcement Learning Model from Scratch", Tan et al., 2023), at its
3 million steps. Fields that default to None are derived by `resolve`, all but `ticket`, where None is none; those that
are points in time scale with the length of the run.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax import envs
from rlx2_jax.config import methods, registry
from rlx2_jax.config.registry import AGENTS
from rlx2_jax.errors import ConfigError

PAPER_STEPS = 3_000_000
"""Length of the paper's runs, which its schedules belong to."""

PACKED_DEPTH = 15
"""Most hidden layers that packed compute takes."""

NEVER = 2**31 - 1
"""A point in time that no run reaches (the counters are int32)."""

KERNEL_INITS = ("release", "lecun")
COMPUTE = ("masked", "packed", "auto")
QUICK_TASKS = ("inverted_pendulum", "InvertedPendulum-v4", "InvertedPendulum-v5")
"""Tasks, beside probes, that are learned in minutes."""


RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        (
            *("num_envs", "episode_length", "batch_size", "data_parallel", "eval_episodes", "reset_pool"),
            *("policy_delay", "score_evaluations", "checkpoint_every", "evolve_interval", "buffer_check_interval"),
        ),
        lambda value: value >= 1,
        "use at least 1",
    ),
    (("actor_lr", "critic_lr", "alpha_lr", "update_ratio"), lambda value: value > 0, "use a positive number"),
    (
        ("explore_noise", "target_noise", "target_noise_clip", "distance_threshold", "n_step_delay"),
        lambda value: value >= 0,
        "use zero or more",
    ),
    (
        ("gamma", "tau", "drop_fraction", "drop_ratio", "evolve_until"),
        lambda value: 0 <= value <= 1,
        "use a number in [0, 1]",
    ),
    (("actor_sparsity", "critic_sparsity"), lambda value: 0 <= value < 1, "use a sparsity in [0, 1)"),
)
"""What fields can be, whatever the others are: names, a condition, and what a person is told."""


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Construct, `dataclasses.replace`, then `resolve`; every field is also a command-line flag."""

    # Task
    env: str = _field("inverted_pendulum", "task to train on: a name, or package.module:function of your own")
    backend: str | None = _field(
        None, f"what simulates the task: {', '.join(envs.BACKENDS)} (default: as the task and the device ask)"
    )
    episode_length: int = _field(1000, "steps until an episode is truncated")
    seed: int = _field(0, "seed of everything random in the run")

    # Length
    total_steps: int | None = _field(
        None, "environment steps (default: pendulums and probes 25000, or 40000 for sac; else 1 million)"
    )
    num_envs: int = _field(20, "environments stepped in parallel")
    update_ratio: float = _field(1.0, "critic updates per environment step")
    warmup_steps: int | None = _field(None, "random environment steps before learning (paper: 25000, scaled)")
    schedule_scale: float | None = _field(
        None, "factor on the paper's points in time (default: total_steps / 3 million)"
    )

    # Agent
    agent: str = _field("td3", "learning algorithm: " + ", ".join(AGENTS) + ", or package.module:Class")
    network: str = _field("mlp", "networks: mlp, layernorm, simba, or package.module:function")
    hidden: tuple[int, ...] = _field((256, 256), "widths of the hidden layers")
    batch_size: int = _field(256, "transitions per update")
    gamma: float = _field(0.99, "discount per step")
    tau: float = _field(0.005, "Polyak step of the target networks")
    actor_lr: float = _field(3e-4, "Adam step size of the actor")
    critic_lr: float = _field(3e-4, "Adam step size of the critics")
    alpha_lr: float = _field(3e-4, "Adam step size of SAC's temperature")
    policy_delay: int | None = _field(None, "critic updates per actor and target update (default: TD3 2, SAC 1)")
    explore_noise: float = _field(0.1, "TD3: standard deviation of the exploration noise")
    target_noise: float = _field(0.2, "TD3: standard deviation of the target action's noise")
    target_noise_clip: float = _field(0.5, "TD3: bound of the target action's noise")

    # Method: a name, and each of its mechanisms alone
    method: str = _field("rlx2", "training scheme: " + ", ".join(methods.METHODS))
    actor_sparsity: float = _field(0.9, "share of the actor's weights that is absent")
    critic_sparsity: float = _field(0.9, "share of the critics' weights that is absent")
    topology: str | None = _field(None, "ablation: " + ", ".join(methods.TOPOLOGIES) + " (default: the method's)")
    n_step: int | None = _field(None, "ablation: steps in a TD target (default: the method's)")
    dynamic_buffer: bool | None = _field(None, "ablation: drop old off-policy data (default: the method's)")
    n_max: int | None = _field(None, "longest window the program can hold (default: 3, or n_step)")

    # Lottery tickets (see policies/tickets.py)
    ticket: str | None = _field(None, "begin with the masks that another run ended with: its directory or masks.npz")
    ticket_weights: str = _field(
        "initial", "weights of a ticket: initial, or release (zero where the other run's first mask had no link)"
    )

    # Topology evolution (paper section 4.1)
    drop_fraction: float = _field(0.5, "share of links moved by the first topology event")
    evolve_interval: int | None = _field(
        None, "optimiser calls between topology events, of which an iteration makes one at most (paper: 10000, scaled)"
    )
    evolve_until: float = _field(1.0, "share of training after which the topology is fixed")

    # Multi-step targets (section 4.2.1)
    n_step_delay: int | None = _field(None, "critic updates with one-step targets first (paper: 300000, scaled)")

    # Dynamic-capacity replay (section 4.2.2)
    buffer_max: int | None = _field(
        None, "most transitions kept (default: the paper's, TD3 1e6, SAC 3e6, at most total_steps)"
    )
    buffer_min: int | None = _field(None, "fewest transitions kept (paper: TD3 1e5, SAC 2e5, scaled)")
    buffer_check_interval: int | None = _field(None, "environment steps between buffer checks (paper: 10000, scaled)")
    distance_threshold: float = _field(0.2, "policy distance above which old data is dropped")
    drop_ratio: float = _field(0.1, "share of the buffer dropped at once")

    # Where the paper's text and its published code differ (see presets.py)
    initial_mask: str = _field("magnitude", "first mask: magnitude (release) or random (paper)")
    kernel_init: str = _field(
        "release",
        "initial weights: release (TD3 uniform, SAC orthogonal), or lecun (normal; for sparsity of 95 % and more)",
    )
    distance: str = _field("half_mse", "policy distance: half_mse (release) or l2 (paper)")
    drop_rule: str = _field("once", "too distant data: drop a share once (release) or until_close (paper)")
    reset_moments: bool = _field(True, "zero the Adam moments of dropped links (release: no)")
    sac_explore: str = _field("sample", "SAC collects with: sample, or mode (release)")
    mask_initial_targets: bool = _field(True, "targets are sparse from the start (release: from the first Polyak step)")

    # How it is computed; changes rounding, never what is computed
    compute: str = _field("auto", "networks' products: masked (dense), packed (links only), auto (the faster here)")
    data_parallel: int = _field(1, "devices that share the work of each batch")

    # Evaluation and bookkeeping
    eval_every: int | None = _field(
        None, "environment steps between evaluations (default: 5000, or a 4th of the run, on quick tasks a 20th)"
    )
    eval_episodes: int = _field(10, "episodes per evaluation, from fresh initial states")
    score_evaluations: int | None = _field(None, "last evaluations averaged into the score (default: a 10th, 3 to 30)")
    checkpoint_every: int | None = _field(None, "environment steps between checkpoints (default: a 20th of the run)")
    chunk_steps: int | None = _field(None, "environment steps per call of the compiled program (default: about 1000)")
    reset_pool: int = _field(64, "fresh initial states drawn per chunk and evaluation")

    def __post_init__(self) -> None:
        """Take an environment object, too, by its name (see `envs.name_of`)."""
        if not isinstance(self.env, str):
            object.__setattr__(self, "env", envs.name_of(self.env))

    @property
    def updates_per_iteration(self) -> int:
        """Critic updates per iteration (one step of all environments)."""
        return round(self.num_envs * self.update_ratio)

    @property
    def delay(self) -> int:
        """Critic updates per actor update; the resolved `policy_delay`."""
        return registry.find(self.agent).defaults.policy_delay if self.policy_delay is None else self.policy_delay

    @property
    def iterations_per_chunk(self) -> int:
        """Iterations in one call of the compiled chunk. Needs a resolved config."""
        assert self.chunk_steps is not None
        return self.chunk_steps // self.num_envs

    @property
    def chunks_per_evaluation(self) -> int:
        """Chunks between two evaluations. Needs a resolved config."""
        assert self.eval_every is not None and self.chunk_steps is not None
        return self.eval_every // self.chunk_steps

    @property
    def num_evaluations(self) -> int:
        """Evaluations in the whole run. Needs a resolved config."""
        assert self.total_steps is not None and self.eval_every is not None
        return self.total_steps // self.eval_every

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Inverse of `to_dict`; raises ConfigError on fields it does not know, and on values that no field can have."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown configuration fields {unknown}; valid: {sorted(known)}.")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, value in plain.items():
            _check_kind(name, value)
        return cls(**plain)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "use true or false"),
    "int": (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "use a whole number"),
    "float": (lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool), "use a number"),
    "str": (lambda value: isinstance(value, str), "use a text"),
    "tuple[int, ...]": (
        lambda value: isinstance(value, tuple) and all(KINDS["int"][0](part) for part in value),
        "use whole numbers",
    ),
    "None": (lambda value: value is None, "or leave it out"),
}
"""What a value of a type is, as the fields of `Config` name types, and what a person is told of another one."""


def _check_kind(name: str, value: Any) -> None:
    kinds = [KINDS[kind] for kind in str(Config.__annotations__[name]).split(" | ")]
    _require(any(fits(value) for fits, _ in kinds), f"{name}={value!r:.40}: {', '.join(mend for _, mend in kinds)}.")


METHOD = ("method", "topology", "actor_sparsity", "critic_sparsity")
"""Fields that are data of masked programs: numbers of links, and what moves them."""

VALUES = (
    *("actor_lr", "critic_lr", "alpha_lr", "gamma", "tau", "explore_noise", "target_noise", "target_noise_clip"),
    *("drop_fraction", "n_step", "dynamic_buffer", "buffer_max", "buffer_min", "distance_threshold", "drop_ratio"),
)
"""Fields that are data of every program, each run's own."""

TIMES = ("warmup_steps", "evolve_interval", "evolve_until", "n_step_delay", "buffer_check_interval")
"""Fields that are data of every program, one schedule for all runs of a batch."""

UNSEEN = ("seed", "total_steps", "schedule_scale", "eval_every", "checkpoint_every", "score_evaluations")
"""Fields that no program sees, but whoever calls it."""


def resolve(config: Config) -> Config:
    """Check a configuration and fill in every field left at None but the ticket.

    Change settings before resolving, not after: what is filled in belongs to the method and the length it was filled in
    for. Resolving twice changes nothing.

    Raises:
      ConfigError: one sentence on what cannot be and how to mend it.
    """
    _check_names(config)
    _check_numbers(config)
    mechanisms = methods.METHODS[config.method]
    defaults = registry.find(config.agent).defaults
    c = config
    E = c.num_envs

    total, quick = c.total_steps, c.env in QUICK_TASKS or c.env.startswith("probe/")
    if total is None:
        total = defaults.quick_steps if quick else 1_000_000
    _require(total >= E, f"total_steps={total} is less than one step of num_envs={E} environments; use at least {E}.")
    updates = total * c.update_ratio
    _require(updates <= NEVER, f"update_ratio={c.update_ratio:g} makes {updates:.2g} updates; use at most {NEVER}.")
    scale = total / PAPER_STEPS if c.schedule_scale is None else c.schedule_scale
    longest = NEVER // PAPER_STEPS / max(1.0, c.update_ratio)
    _require(0 < scale <= longest, f"schedule_scale={scale:g}: use a positive factor of at most {longest:g}.")

    def scaled(value: int | None, paper: float, least: int = 1) -> int:
        return max(least, round(paper * scale)) if value is None else value

    # Whole iterations make a chunk, whole chunks an evaluation, whole evaluations the run.
    # An evaluation may take as many steps as are trained between two: short runs of slow tasks make few of them.
    eval_every = min(5000, math.ceil(total / (20 if quick else 4))) if c.eval_every is None else c.eval_every
    chunk_steps = c.chunk_steps if c.chunk_steps is not None else min(1000, eval_every)
    _require(
        0 < chunk_steps <= eval_every <= total,
        f"chunk_steps={chunk_steps}, eval_every={eval_every} and total_steps={total} must not decrease; "
        "use 1 <= chunk_steps <= eval_every <= total_steps.",
    )
    chunk_steps = _round_to(chunk_steps, E)
    eval_every = _round_to(eval_every, chunk_steps)
    total = math.ceil(total / eval_every) * eval_every
    evaluations = total // eval_every
    checkpoint_every = math.ceil(total / 20) if c.checkpoint_every is None else c.checkpoint_every
    score_evaluations = max(3, min(30, evaluations // 10)) if c.score_evaluations is None else c.score_evaluations

    n_step = mechanisms.n_step if c.n_step is None else c.n_step
    _require(n_step >= 1, f"n_step={n_step}: a TD target spans at least 1 step.")
    n_max = max(3, n_step) if c.n_max is None else c.n_max
    _require(n_step <= n_max, f"n_step={n_step} is over n_max={n_max}; raise n_max to {n_step}.")

    needed = max(c.batch_size, (n_max + 2) * E)
    warmup = scaled(c.warmup_steps, 25_000, least=needed)
    _require(
        warmup >= (n_max + 2) * E,
        f"warmup_steps={warmup} does not fill one window; use at least {(n_max + 2) * E}.",
    )
    _require(total > warmup, f"total_steps={total} ends in the warm-up; use more than {warmup} steps.")
    buffer_max = c.buffer_max
    if buffer_max is None:
        buffer_max = min(defaults.buffer_max, total)
    buffer_min = scaled(c.buffer_min, defaults.buffer_min, least=max(8 * c.batch_size, needed))
    buffer_min = min(buffer_min, buffer_max) if c.buffer_min is None else buffer_min
    _require(
        buffer_max >= needed,
        f"a batch of {c.batch_size} does not fit a buffer of {buffer_max}; use buffer_max of at least {needed}.",
    )
    _require(
        needed <= buffer_min <= buffer_max,
        f"buffer_min={buffer_min} must lie between {needed} (one batch or window) and buffer_max={buffer_max}.",
    )
    resolved = dataclasses.replace(
        c,
        backend=envs.choose_backend(c.env, c.backend),
        total_steps=total,
        schedule_scale=scale,
        warmup_steps=warmup,
        policy_delay=c.delay,
        topology=mechanisms.topology if c.topology is None else c.topology,
        n_step=n_step,
        n_max=n_max,
        dynamic_buffer=mechanisms.dynamic_buffer if c.dynamic_buffer is None else c.dynamic_buffer,
        actor_sparsity=c.actor_sparsity if mechanisms.structure != "dense" else 0.0,
        critic_sparsity=c.critic_sparsity if mechanisms.structure != "dense" else 0.0,
        # The paper makes an update per step, so what it counts in updates is as much in steps.
        evolve_interval=scaled(c.evolve_interval, 10_000 * c.updates_per_iteration / E, least=c.updates_per_iteration),
        n_step_delay=scaled(c.n_step_delay, 300_000 * c.updates_per_iteration / E),
        buffer_max=buffer_max,
        buffer_min=buffer_min,
        buffer_check_interval=scaled(c.buffer_check_interval, 10_000, least=E),
        eval_every=eval_every,
        chunk_steps=chunk_steps,
        checkpoint_every=checkpoint_every,
        score_evaluations=score_evaluations,
    )
    _check_together(resolved)
    _check_numbers(resolved)
    return resolved


def _check_names(c: Config) -> None:
    choices = {
        "method": tuple(methods.METHODS),
        "compute": COMPUTE,
        "initial_mask": ("magnitude", "random"),
        "kernel_init": KERNEL_INITS,
        "distance": ("half_mse", "l2"),
        "drop_rule": ("once", "until_close"),
        "sac_explore": ("sample", "mode"),
        "ticket_weights": ("initial", "release"),
    }
    if c.topology is not None:
        choices["topology"] = methods.TOPOLOGIES
    for name, valid in choices.items():
        value = getattr(c, name)
        _require(value in valid, f"unknown {name} {value!r}; valid: {', '.join(valid)}.")


def _check_numbers(c: Config) -> None:
    """Refuse what a field cannot be, whatever the others are; fields that are left to be derived can be anything."""
    given = {name: value for name, value in vars(c).items() if value is not None}
    for name, value in given.items():
        if isinstance(value, int):
            _require(abs(value) <= NEVER, f"{name}={value} is too large; use at most {NEVER}.")
    for names, within, mend in RANGES:
        for name in names:
            _require(name not in given or within(given[name]), f"{name}={given.get(name)}: {mend}.")
    for name, value in given.items():
        if isinstance(value, float):
            _require(math.isfinite(value), f"{name}={value}: use a finite number.")


def _check_together(c: Config) -> None:
    devices = c.data_parallel
    _require(
        c.batch_size % devices == 0,
        f"batch_size={c.batch_size} is not divided by data_parallel={devices} devices; use a batch_size of "
        f"{math.ceil(c.batch_size / devices) * devices}.",
    )
    _require(
        len(c.hidden) >= 1 and all(isinstance(h, int) and h >= 1 for h in c.hidden),
        f"hidden={c.hidden}: name at least one width, each a whole number of 1 or more.",
    )
    _require(
        c.compute != "packed" or len(c.hidden) <= PACKED_DEPTH,
        f"hidden has {len(c.hidden)} widths and packed compute takes {PACKED_DEPTH}; use compute=masked.",
    )
    if c.compute == "packed":
        for name in ("reset_moments", "mask_initial_targets"):
            _require(
                getattr(c, name),
                f"{name}=False needs values off the links, which packed compute does not keep; use compute=masked.",
            )
    _check_updates(c)


def _check_updates(c: Config) -> None:
    """An iteration must hold whole cycles: its updates are a whole multiple of the policy delay."""

    def fits(num_envs: int) -> bool:
        cycles = num_envs * c.update_ratio / c.delay
        return round(cycles) >= 1 and math.isclose(cycles, round(cycles))

    advised = next((E for E in range(c.num_envs, c.num_envs + 1000) if fits(E)), None)
    mend = "choose another update_ratio" if advised is None else f"use {advised} environments"
    _require(
        fits(c.num_envs),
        f"num_envs={c.num_envs} x update_ratio={c.update_ratio:g} critic updates per iteration are not a multiple of "
        f"policy_delay={c.delay}; {mend}.",
    )


def _round_to(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


class HParams(flax.struct.PyTreeNode):
    """What may differ between the runs of one compiled program: a pytree of scalars, `vmap` over it freely."""

    actor_lr: jax.Array
    critic_lr: jax.Array
    alpha_lr: jax.Array
    gamma: jax.Array
    tau: jax.Array
    explore_noise: jax.Array
    target_noise: jax.Array
    target_noise_clip: jax.Array
    actor_links: tuple[jax.Array, ...]
    """Number of active links of each actor matrix, input to output."""
    critic_links: tuple[jax.Array, ...]
    """The same for each matrix of one critic."""
    actor_width: jax.Array
    """Live hidden units per layer of the actor; less than the width for the method `tiny` only."""
    critic_width: jax.Array
    drop_fraction: jax.Array
    """zeta_0: share of links moved by the first event; 0 where the topology is fixed."""
    grow_gradient: jax.Array
    """Whether links grow where the gradient is largest (RigL) or at random (SET)."""
    n_step: jax.Array
    dynamic_buffer: jax.Array
    buffer_max: jax.Array
    """Transitions, at most what the program's ring holds."""
    buffer_min: jax.Array
    distance_threshold: jax.Array
    drop_ratio: jax.Array


class Schedule(flax.struct.PyTreeNode):
    """When things happen: traced int32 scalars shared by all runs of a program, so that conditions stay branches."""

    warmup_steps: jax.Array
    """Environment steps."""
    evolve_interval: jax.Array
    """Optimiser calls of the network in question."""
    critic_evolve_end: jax.Array
    """T_end in critic optimiser calls."""
    actor_evolve_end: jax.Array
    """T_end in actor optimiser calls."""
    n_step_delay: jax.Array
    """Critic optimiser calls."""
    buffer_check_interval: jax.Array
    """Environment steps."""


def make_schedule(config: Config) -> Schedule:
    """The points in time of a resolved configuration. What a run never does is put beyond its end."""
    c = config
    assert c.total_steps is not None and c.warmup_steps is not None
    calls = int((c.total_steps - c.warmup_steps) * c.update_ratio * c.evolve_until)
    count = lambda value: jnp.asarray(value, jnp.int32)
    return Schedule(
        warmup_steps=count(c.warmup_steps),
        evolve_interval=count(NEVER if c.topology == "fixed" else c.evolve_interval),
        critic_evolve_end=count(calls),
        actor_evolve_end=count(calls // c.delay),
        n_step_delay=count(NEVER if c.n_step == 1 else c.n_step_delay),
        buffer_check_interval=count(c.buffer_check_interval),
    )
