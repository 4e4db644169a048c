"""Masked or packed: which is faster here, found by trying.

Masked compute multiplies dense matrices with zeros in them; packed compute touches links alone (see `kernels`). Which
one wins depends on sparsity, width and machine, so `auto` races a few updates of both at the start of a run and
remembers the outcome for this machine and these shapes. There are no packed kernels for GPU and TPU, so there
`auto` is masked without a race.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax import __version__, compilation, envs, files, kernels, provenance
from rlx2_jax.agents import AgentState
from rlx2_jax.config import Config, link_counts
from rlx2_jax.training.program import Program, make_program

RACE_SECONDS = 2.0
"""Time given to a race, compilation apart."""

TURN_SECONDS = 0.2
"""One contender's turn in a race."""

TRANSITIONS = 100_000
"""At most, in the replay that a race samples from."""


def choose(config: Config, say: Callable[[str], None], cache: Path | None = None) -> Config:
    """A resolved configuration whose `compute` is masked or packed.

    Args:
      config: resolved.
      say: takes one line on what was found, if anything was to be found.
      cache: file of earlier outcomes (default: `rlx2_jax/compute.json` in the user's cache directory).
    """
    if config.compute == "packed" and not kernels.native_available():
        say(kernels.MISSING)
    if config.compute != "auto":
        return config
    masked = dataclasses.replace(config, compute="masked")
    packed = dataclasses.replace(config, compute="packed")
    if jax.default_backend() != "cpu":
        return masked
    if not kernels.native_available():
        say(kernels.MISSING)
        return masked
    if not (config.reset_moments and config.mask_initial_targets):
        say("compute: masked, because this preset keeps values off the links")
        return masked
    cache = _default_cache() if cache is None else cache
    key = _key(config)
    ratios = _read(cache)
    if key not in ratios:
        say("compute: racing masked and packed updates, once for this machine and these shapes")
        small = min(config.buffer_max or TRANSITIONS, TRANSITIONS)
        lighter = lambda c: dataclasses.replace(c, buffer_max=small, buffer_min=None)
        contenders = {c.compute: updates(make_program(lighter(c))) for c in (masked, packed)}
        seconds = race(contenders, RACE_SECONDS)
        ratios[key] = statistics.median(seconds["masked"]) / statistics.median(seconds["packed"])
        _write(cache, ratios)
    ratio = ratios[key]
    say(f"compute: packed updates are {ratio:.2f} times as fast as masked ones here")
    return packed if ratio > 1 else masked


def updates(program: Program, *, dense: bool = False) -> tuple[AgentState, Callable[[AgentState], AgentState]]:
    """A fresh agent and one iteration's updates, compiled, on random experience with multi-step windows in use.

    Args:
      program: of any configuration.
      dense: without masks, as a program that knows of no sparsity.
    """
    state = jax.jit(program.init)(jax.random.PRNGKey(0), program.hparams)
    key = jax.random.PRNGKey(1)
    replay = state.replay.replace(
        observation=jax.random.normal(key, state.replay.observation.shape),
        action=jax.random.uniform(key, state.replay.action.shape, minval=-1),
        reward=jax.random.normal(key, state.replay.reward.shape),
        head=jnp.asarray(state.replay.reward.shape[0], jnp.int32),
    )
    agent = state.agent
    if dense:
        agent = agent.replace(actor=agent.actor.replace(mask=None), critic=agent.critic.replace(mask=None))

    def step(agent: AgentState) -> AgentState:
        return program.learn(agent, replay, key, program.hparams, jnp.asarray(True))[0]

    return agent, jax.jit(step, donate_argnums=0)


def race(contenders: Mapping[str, tuple[Any, Callable[[Any], Any]]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each contender `(state, step)`.

    They take short turns, so that a busy machine slows all alike. A turn is several calls, the first of them not
    counted, so that each is measured with its own data in cache, as in training, not with what another left there.
    """
    states = {name: jax.block_until_ready(step(state)) for name, (state, step) in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(times.values()):
        for name, (_, step) in contenders.items():
            states[name] = jax.block_until_ready(step(states[name]))
            turn = time.perf_counter() + TURN_SECONDS
            while (began := time.perf_counter()) < turn:
                states[name] = jax.block_until_ready(step(states[name]))
                times[name].append(time.perf_counter() - began)
    return times


def _default_cache() -> Path | None:
    root = compilation.user_cache()
    return None if root is None else root / "rlx2_jax" / "compute.json"


def _key(config: Config) -> str:
    """What the outcome depends on: the machine, the versions, and the shapes of an update."""
    env = envs.make(config.env, config.backend)
    shape = (
        config.agent,
        env.observation_size,
        env.action_size,
        config.hidden,
        config.batch_size,
        config.delay,
        config.n_max,
        config.updates_per_iteration,
        config.data_parallel,
        link_counts(config, env.observation_size, env.action_size),
    )
    machine = (platform.processor(), provenance.processor(), len(provenance.cores()), jax.__version__, __version__)
    return hashlib.sha256(repr((machine, shape)).encode()).hexdigest()[:16]


def _read(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(path: Path | None, ratios: Mapping[str, float]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, dict(ratios))
    except OSError:
        pass  # Measured again next time.
