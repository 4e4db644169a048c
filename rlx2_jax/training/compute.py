"""Masked or packed: which is faster here.

Masked compute multiplies dense matrices with zeros in them, so an update takes as long at any sparsity; packed compute
touches links alone (see `kernels`), so it takes as long as there are links. Which one wins depends on the density at
which both take as long, a property of the machine: `auto` measures that once, on one small network, and remembers it.
Where the number of links changes, it goes by the density on average over the run. There are no packed kernels for GPU
and TPU, so there `auto` is masked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax import __version__, envs, kernels, networks
from rlx2_jax.agents import AgentState
from rlx2_jax.config import PACKED_DEPTH, RunConfig, methods
from rlx2_jax.io import files, provenance
from rlx2_jax.networks import SparseNetwork, forms, masking
from rlx2_jax.networks.structure import mean_progress, packable, structure
from rlx2_jax.runtime import compilation
from rlx2_jax.training.programs import Program

MEASURED_SECONDS = 0.8
"""Time given to the measurement, compilation apart."""

TURN_SECONDS = 0.2
"""One contender's turn in a race."""

WIDTH, DENSITY, BATCH = 256, 0.1, 256
"""The network that is measured: units of its hidden layers, the share of its weights that are links, and samples."""


def choose(config: RunConfig, say: Callable[[str], None], cache: Path | None = None) -> RunConfig:
    """A configuration whose `compute` is masked or packed.

    Args:
      config: of a run; only its `compute` may change.
      say: takes one line on what was found, if anything was to be found.
      cache: file of what was measured (default: `rlx2_jax/compute.json` in the user's cache directory).
    """
    if config.compute == "packed" and not kernels.native_available():
        say(kernels.MISSING if jax.default_backend() == "cpu" else kernels.NO_KERNELS)
    if config.compute != "auto":
        return config
    masked = dataclasses.replace(config, compute="masked")
    if jax.default_backend() != "cpu":
        return masked
    if not kernels.native_available():
        say(kernels.MISSING)
        return masked
    if not (config.reset_moments and config.mask_initial_targets):
        say("compute: masked, because this preset keeps values off the links")
        return masked
    if len(config.hidden) > PACKED_DEPTH:
        say(f"compute: masked, because packed compute takes {PACKED_DEPTH} hidden layers")
        return masked
    if not packable(config):
        say(f"compute: masked, because there is no packed form of {config.agent} with {config.networks} networks")
        return masked
    # Where all weights are links packed compute has only its indices to lose by; that it won was a busy machine.
    density, even = _density(config), min(1.0, _break_even(_default_cache() if cache is None else cache))
    which = "packed" if density < even else "masked"
    when = "" if methods.find(config.method).progress is None else " on average over the run"
    say(
        f"compute: {which}, because {_percent(density)} of the weights are links{when} and packed is faster below "
        f"{_percent(even)} here"
    )
    return dataclasses.replace(config, compute=which)


def _percent(share: float) -> str:
    """A share to two digits, never as a power of ten."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def _density(config: RunConfig) -> float:
    """Links as a share of the weights of both networks, on average over the run's updates."""
    env = envs.make(config.env, config.backend)
    found = structure(config, env.observation_size, env.action_size)
    links = sum(sum(network.mean_links(mean_progress(config, name))) for name, network in found.items())
    return links / sum(i * o for network in found.values() for i, o in network.shapes)


def _break_even(cache: Path | None) -> float:
    """The density at which a forward and backward pass takes as long packed as masked, on this machine."""
    machine = (platform.processor(), provenance.processor(), len(provenance.cores()), jax.__version__, __version__)
    key = hashlib.sha256(repr(machine).encode()).hexdigest()[:16]
    known = _read(cache)
    if key not in known:
        known[key] = measure_break_even(MEASURED_SECONDS)
        _write(cache, known)
    return known[key]


def measure_break_even(seconds: float) -> float:
    """The same, measured: the time of a packed pass grows as its links, that of a masked one with none of them."""
    rng = np.random.default_rng(0)
    net = networks.Net(networks.MLP((WIDTH,) * 3))
    template = jax.eval_shape(lambda key: net.init(key, WIDTH), jax.random.PRNGKey(0))
    mask = masking.of_kernels(template, [rng.random(k.shape) < DENSITY for k in masking.kernels(template)])
    params = jax.tree.map(lambda m: jnp.where(m, rng.normal(size=m.shape) / WIDTH**0.5, 0).astype(jnp.float32), mask)
    masked = forms.fresh(params, mask, None, net)
    packed = masked.packed([int(kernel.sum()) for kernel in masking.kernels(mask)])
    x = jnp.asarray(rng.normal(size=(BATCH, WIDTH)), jnp.float32)

    def contender(network: SparseNetwork) -> tuple[Any, Callable[[Any], Any]]:
        loss = lambda params: jnp.sum(network.apply(params, x) ** 2)
        step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - 1e-9 * g, params, jax.grad(loss)(params)))
        return network.params, step

    contenders = {"masked": contender(masked), "packed": contender(packed)}
    times = race(contenders, seconds)
    # The fastest pass of each: what else the machine does slows the one more than the other, and this is remembered.
    return DENSITY * min(times["masked"]) / min(times["packed"])


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
