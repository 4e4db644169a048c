"""Which runs a study is: every arm of every row with every seed, each with its whole configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from paper.study import DENSE, Arm, Run, Settings, Study
from rlx2_jax import envs
from rlx2_jax.config import PAPER_STEPS, Config, RunConfig, presets, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import structure
from rlx2_jax.training import workdirs

EVAL_EVERY = 5000
"""Environment steps between evaluations of a study's runs, at most: curves compare whatever simulates the task."""

UNTOLD = frozenset({"agent", "env", "seed"}) | workdirs.HOW
"""Fields that a row names, that differ between seeds, or that say how a run is computed."""

SMOKE = {
    "hidden": (64, 64),
    "batch_size": 16,
    "num_envs": 4,
    "total_steps": 1200,
    "warmup_steps": 200,
    "episode_length": 10,
    "eval_every": 400,
    "eval_episodes": 4,
    "reset_pool": 8,
    "n_max": 5,
}
"""What `--smoke` sets, on the row of `SMOKE_ROW`: a minute for a study, most of it compilation of one program."""

SMOKE_ROW = "td3/probe/action"


def runs(
    study: Study,
    rows: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    arms: Sequence[str] = (),
    reading: Settings | None = None,
) -> list[Run]:
    """All runs of a study.

    Args:
      study: one of `registry.STUDIES`.
      rows: `agent/env` each, with the sparsities of Table 2 where it has the row.
      seeds: of each arm of each row.
      settings: what all runs have, over the study's and the row's own; the length of the paper's runs if none of them
        names `total_steps`.
      arms: these alone; empty for all.
      reading: further settings of all runs, which give way to those of an arm (see `presets.READINGS`).

    Raises:
      ConfigError: a row, an arm or a setting that cannot be.
    """
    if study.search and arms:
        raise ConfigError(f"arms={','.join(arms)}: this study searches, and chooses its arms itself; leave it out.")
    found = []
    for row in rows:
        agent, _, env = row.partition("/")
        if not env:
            raise ConfigError(f"rows={row}: name an agent and a task, such as td3/hopper.")
        values = {
            **presets.PRESETS.get(row, {"agent": agent, "env": env, "total_steps": PAPER_STEPS}),
            **study.settings,
            **study.of_row.get(row, {}),
            **(reading or {}),
            **settings,
        }
        base = dataclasses.replace(Config(), **values)
        steps = configured(base, Arm(DENSE, {"method": DENSE})).total_steps
        offered = study.arms(steps)
        conditions = {**_conditions(base, offered), "total_steps": steps}
        if unknown := sorted(set(arms) - {arm.name for arm in offered}):
            raise ConfigError(f"unknown arms {unknown}; valid: {', '.join(arm.name for arm in offered)}.")
        for arm in offered:
            if clash := sorted(set(arm.settings) & set(settings)):
                raise ConfigError(f"--{clash[0]} is what this study varies; leave it out.")
            if arms and arm.name not in arms:
                continue
            if arms and (lacking := [name for name in (arm.ticket, arm.teacher) if name and name not in arms]):
                raise ConfigError(f"arm {arm.name} begins with what {lacking[0]} leaves; name both.")
            configs = [configured(dataclasses.replace(base, seed=seed), arm) for seed in seeds]
            found += [Run(row, arm.name, config, arm.ticket, arm.teacher, conditions) for config in configs]
    return found


def configured(base: Config, arm: Arm) -> RunConfig:
    """The configuration of an arm's run.

    Raises:
      ConfigError: one that cannot be.
    """
    config = dataclasses.replace(base, **arm.settings)
    resolved = resolve(config)
    if config.eval_every is None and resolved.eval_every > EVAL_EVERY:
        config = dataclasses.replace(config, eval_every=EVAL_EVERY)
        resolved = resolve(config)
    return resolved if arm.fitted is None else resolve(dataclasses.replace(config, **arm.fitted(resolved)))


def check(runs: Sequence[Run]) -> None:
    """Refuse runs of a task, or of layers, that cannot be, before any other is trained; makes every task once.

    Raises:
      ConfigError: one sentence on the first of them.
    """
    for run in runs:
        task = envs.make(run.config.env, run.config.backend)
        structure(run.config, task.observation_size, task.action_size)


def _conditions(base: Config, arms: Sequence[Arm]) -> dict[str, Any]:
    """The settings of a configuration without which some arm's run would be another, or could not be."""

    def resolved(config: Config) -> list[RunConfig] | None:
        try:
            return [configured(config, arm) for arm in arms]
        except ConfigError:
            return None

    defaults, runs = Config(), resolved(base)
    values, plain = base.to_dict(), defaults.to_dict()
    named = [name for name, value in values.items() if value != plain[name] and name not in UNTOLD]
    without = lambda name: dataclasses.replace(base, **{name: getattr(defaults, name)})
    return {name: values[name] for name in named if resolved(without(name)) != runs}
