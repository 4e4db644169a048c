"""What a run is, in two types: `Config`, as a person writes it, and `RunConfig`, in which nothing is left open.

Both are flat and frozen, with the same fields, each of which is a command-line flag. `resolution.resolve` makes the
second of the first; `values` says what programs see of it.

Numbers are the paper's ("Training a Sparse Deep Reinforcement Learning Model from Scratch", Tan et al., 2023), at its
3 million steps. Fields that default to None are derived, all but `ticket`, where None is none, and `critic_network`,
where it is `network`; those that are points in time scale with the length of the run.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, Self

from rlx2_jax import envs
from rlx2_jax.config import methods, registry
from rlx2_jax.config.fields import (
    AT_LEAST_1,
    POSITIVE,
    SHARE,
    SPARSITY,
    ZERO_OR_MORE,
    Group,
    Host,
    check_kind,
    declare,
    plain_value,
)
from rlx2_jax.errors import ConfigError

MOST_STEPS = 1000
"""Steps of each environment in an iteration, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Construct, `dataclasses.replace`, then `resolve`; every field is also a command-line flag."""

    # Task
    env: str = declare("inverted_pendulum", "task to train on: its name, or package.module:function", group=Group.TASK)
    backend: str | None = declare(
        None,
        "engine",
        choices=envs.BACKENDS,
        unset="by task and device",
        group=Group.TASK,
    )
    episode_length: int = declare(1000, "steps until an episode is truncated", within=AT_LEAST_1, group=Group.TASK)
    seed: int = declare(0, "seed of everything random in the run", host=Host.RUN, group=Group.TASK)

    # Length
    total_steps: int | None = declare(
        None,
        "environment steps",
        unset="1 million; pendulums, probes 25000, sac 40000, droq 10000",
        host=Host.LOOP,
        group=Group.LENGTH,
    )
    num_envs: int = declare(20, "environments stepped in parallel", within=AT_LEAST_1, group=Group.LENGTH)
    update_ratio: float | None = declare(
        None, "critic updates per environment step", within=POSITIVE, unset="1, or 20 for droq"
    )
    warmup_steps: int | None = declare(
        None, "random environment steps before learning (paper: 25000, scaled)", group=Group.LENGTH
    )
    schedule_scale: float | None = declare(
        None,
        "factor on the paper's points in time",
        unset="total_steps / 3 million",
        host=Host.RUN,
        group=Group.LENGTH,
    )

    # Agent
    agent: str = declare(
        "td3", "learning algorithm", choices=registry.AGENTS, own="package.module:Class", group=Group.AGENT
    )
    network: str = declare(
        "mlp", "networks", choices=registry.NETWORKS, own="package.module:function", group=Group.AGENT
    )
    critic_network: str | None = declare(
        None,
        "the critics' networks",
        choices=registry.NETWORKS,
        own="package.module:function",
        unset="as the actor's",
    )
    hidden: tuple[int, ...] = declare((256, 256), "widths of the hidden layers", group=Group.AGENT)
    batch_size: int = declare(256, "transitions per update", within=AT_LEAST_1, group=Group.AGENT)
    gamma: float = declare(0.99, "discount per step", within=SHARE)
    tau: float = declare(0.005, "Polyak step of the target networks", within=SHARE)
    actor_lr: float = declare(3e-4, "Adam step size of the actor", within=POSITIVE)
    critic_lr: float = declare(3e-4, "Adam step size of the critics", within=POSITIVE)
    alpha_lr: float = declare(3e-4, "Adam step size of SAC's temperature", within=POSITIVE)
    policy_delay: int | None = declare(
        None,
        "critic updates per actor and target update",
        within=AT_LEAST_1,
        unset="TD3 2, SAC 1, DroQ 20",
    )
    explore_noise: float = declare(0.1, "TD3: standard deviation of the exploration noise", within=ZERO_OR_MORE)
    target_noise: float = declare(0.2, "TD3: standard deviation of the target action's noise", within=ZERO_OR_MORE)
    target_noise_clip: float = declare(0.5, "TD3: bound of the target action's noise", within=ZERO_OR_MORE)

    # Method: a name, and each of its mechanisms alone
    method: str = declare(
        "rlx2", "training scheme", choices=methods.NAMES, own="package.module:name", group=Group.SPARSITY
    )
    actor_sparsity: float = declare(
        0.9, "share of the actor's weights that is absent", within=SPARSITY, group=Group.SPARSITY
    )
    critic_sparsity: float = declare(
        0.9, "share of the critics' weights that is absent", within=SPARSITY, group=Group.SPARSITY
    )
    topology: str | None = declare(None, "ablation", choices=methods.TOPOLOGIES, unset="the method's")
    n_step: int | None = declare(None, "ablation: steps in a TD target", unset="the method's")
    dynamic_buffer: bool | None = declare(None, "ablation: drop old off-policy data", unset="the method's")
    n_max: int | None = declare(None, "longest window the program can hold", unset="3, or n_step")

    # Lottery tickets (see policies/tickets.py)
    ticket: str | None = declare(
        None, "begin with the masks that another run ended with: its directory or masks.npz", place=True
    )
    ticket_weights: str = declare(
        "initial",
        "weights of a ticket",
        choices={"initial": "", "release": "zero where the other run's first mask had no link"},
    )

    # Topology evolution (paper section 4.1)
    drop_fraction: float = declare(0.5, "share of links moved by the first topology event", within=SHARE)
    evolve_interval: int | None = declare(
        None,
        "optimiser calls between topology events, of which an iteration makes one at most (paper: 10000, scaled)",
        within=AT_LEAST_1,
    )
    score_batches: int = declare(1, "batches whose mean gradient is what links grow by", within=AT_LEAST_1)
    evolve_until: float = declare(1.0, "share of training after which the topology is fixed", within=SHARE)

    # Multi-step targets (section 4.2.1)
    n_step_delay: int | None = declare(
        None, "critic updates with one-step targets first (paper: 300000, scaled)", within=ZERO_OR_MORE
    )

    # Dynamic-capacity replay (section 4.2.2)
    buffer_max: int | None = declare(
        None, "most transitions kept", unset="the paper's, TD3 1e6, SAC 3e6, at most total_steps"
    )
    buffer_min: int | None = declare(None, "fewest transitions kept (paper: TD3 1e5, SAC 2e5, scaled)")
    buffer_check_interval: int | None = declare(
        None, "environment steps between buffer checks (paper: 10000, scaled)", within=AT_LEAST_1
    )
    distance_threshold: float = declare(0.2, "policy distance above which old data is dropped", within=ZERO_OR_MORE)
    drop_ratio: float = declare(0.1, "share of the buffer dropped at once", within=SHARE)

    # Where the paper's text and its published code differ (see presets.py)
    initial_mask: str = declare("magnitude", "first mask", choices={"magnitude": "release", "random": "paper"})
    kernel_init: str = declare(
        "release",
        "initial weights",
        choices={
            "release": "TD3 uniform, SAC orthogonal",
            "lecun": "normal; for sparsity of 95 % and more",
        },
        group=Group.SPARSITY,
    )
    distance: str = declare("half_mse", "policy distance", choices={"half_mse": "release", "l2": "paper"})
    drop_rule: str = declare(
        "once", "drop too distant data", choices={"once": "a share of the buffer; release", "until_close": "paper"}
    )
    reset_moments: bool = declare(True, "zero the Adam moments of dropped links (release: no)")
    sac_explore: str = declare("sample", "SAC collects with", choices={"sample": "", "mode": "release"})
    mask_initial_targets: bool = declare(
        True, "targets are sparse from the start (release: from the first Polyak step)"
    )

    # How it is computed; changes rounding, never what is computed
    compute: str = declare(
        "auto",
        "networks' products",
        choices={"masked": "dense", "packed": "links only", "auto": "the faster here"},
        group=Group.COMPUTING,
    )
    data_parallel: int = declare(
        1, "devices that share the work of each batch", within=AT_LEAST_1, group=Group.COMPUTING
    )

    # Evaluation and bookkeeping
    eval_every: int | None = declare(
        None,
        "steps between evaluations",
        unset="25000, mujoco 5000, or a 4th, quick a 20th",
        host=Host.LOOP,
        group=Group.OUTPUT,
    )
    eval_episodes: int = declare(10, "episodes per evaluation, from fresh initial states", within=AT_LEAST_1)
    score_evaluations: int | None = declare(
        None,
        "last evaluations averaged into the score",
        within=AT_LEAST_1,
        unset="a 10th, 3 to 30",
        host=Host.RUN,
    )
    checkpoint_every: int | None = declare(
        None,
        "environment steps between checkpoints",
        within=AT_LEAST_1,
        unset="a 20th of the run, at least 5000",
        host=Host.LOOP,
    )
    logger: str = declare(
        "tensorboard",
        "loggers",
        choices=registry.LOGGERS,
        own="package.module:name",
        several=True,
        host=Host.RUN,
        group=Group.OUTPUT,
    )
    chunk_steps: int | None = declare(None, "environment steps per call of the compiled program", unset="about 1000")
    reset_pool: int = declare(64, "fresh initial states drawn per chunk and evaluation", within=AT_LEAST_1)

    def __post_init__(self) -> None:
        """Take an environment object, too, by its name (see `envs.name_of`), and numbers as NumPy has them."""
        if not isinstance(self.env, str):
            object.__setattr__(self, "env", envs.name_of(self.env))
        for field in dataclasses.fields(Config):
            object.__setattr__(self, field.name, plain_value(field, getattr(self, field.name)))

    def __eq__(self, other: object) -> bool:
        """Whether all settings are the same; one may be written and the other resolved."""
        return vars(self) == vars(other) if isinstance(other, Config) else NotImplemented

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration: each environment's next, or as many more as make whole cycles of updates."""
        return self.num_envs * self.cycles_per_step.denominator

    @property
    def updates_per_iteration(self) -> int:
        """Critic updates per iteration, a whole multiple of `delay`."""
        return self.cycles_per_step.numerator * self.delay

    @property
    def cycles_per_step(self) -> Fraction:
        """Cycles of `delay` critic updates and one of the actor per step of all environments."""
        return Fraction(self.num_envs * self.ratio / self.delay).limit_denominator(MOST_STEPS)

    @property
    def ratio(self) -> float:
        """Critic updates per environment step; the resolved `update_ratio`."""
        return registry.find(self.agent).defaults.update_ratio if self.update_ratio is None else self.update_ratio

    @property
    def delay(self) -> int:
        """Critic updates per actor update; the resolved `policy_delay`."""
        return registry.find(self.agent).defaults.policy_delay if self.policy_delay is None else self.policy_delay

    def sparsity(self, network: str) -> float:
        """Share of the weights of `actor` or `critic` that is absent: none, where the method is a dense one."""
        dense = methods.find(self.method).kind == "dense"
        return 0.0 if dense else getattr(self, f"{network}_sparsity")

    def network_of(self, network: str) -> str:
        """The kind of network that `actor` or `critic` is."""
        return self.network if network == "actor" or self.critic_network is None else self.critic_network

    @property
    def networks(self) -> str:
        """The kinds of both networks, in words."""
        return " and ".join(dict.fromkeys(map(self.network_of, ("actor", "critic"))))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
          ConfigError: fields it does not know, values that no field can have, or, of a run's, fields left out.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ConfigError(f"unknown configuration fields {unknown}; valid: {sorted(fields)}.")
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ConfigError(f"configuration fields {missing} are missing; give all that a run's config.json has.")
        plain = {name: plain_value(fields[name], value) for name, value in values.items()}
        for name, value in plain.items():
            check_kind(fields[name], value)
        return cls(**plain)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunConfig(Config):
    """One run with nothing left open, as `resolve` gives it. Its files hold it, and `RunConfig.from_dict` reads them.

    Fields that are derived are named again, without None and without a default.
    """

    backend: str = dataclasses.field()
    total_steps: int = dataclasses.field()
    warmup_steps: int = dataclasses.field()
    schedule_scale: float = dataclasses.field()
    update_ratio: float = dataclasses.field()
    policy_delay: int = dataclasses.field()
    topology: str = dataclasses.field()
    n_step: int = dataclasses.field()
    dynamic_buffer: bool = dataclasses.field()
    n_max: int = dataclasses.field()
    evolve_interval: int = dataclasses.field()
    n_step_delay: int = dataclasses.field()
    buffer_max: int = dataclasses.field()
    buffer_min: int = dataclasses.field()
    buffer_check_interval: int = dataclasses.field()
    eval_every: int = dataclasses.field()
    score_evaluations: int = dataclasses.field()
    checkpoint_every: int = dataclasses.field()
    chunk_steps: int = dataclasses.field()

    @property
    def iterations_per_chunk(self) -> int:
        """Iterations in one call of the compiled chunk."""
        return self.chunk_steps // self.steps_per_iteration

    @property
    def chunks_per_evaluation(self) -> int:
        """Chunks between two evaluations."""
        return self.eval_every // self.chunk_steps

    @property
    def updates(self) -> int:
        """Critic updates in the whole run: those of the iterations that begin when the warm-up is over."""
        steps = self.steps_per_iteration
        return (self.total_steps // steps - math.ceil(self.warmup_steps / steps)) * self.updates_per_iteration

    @property
    def num_evaluations(self) -> int:
        """Evaluations in the whole run."""
        return self.total_steps // self.eval_every
