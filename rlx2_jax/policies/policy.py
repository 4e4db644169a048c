"""Policies on their own: one `.npz` file that loads without trainer, environment or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax import __version__
from rlx2_jax.agents import networks
from rlx2_jax.config import AGENTS, Config, RunConfig
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.io import archives
from rlx2_jax.runtime import numerics

NAME = "policy.npz"
"""Of the file in a run's directory; `policy_best.npz` lies beside it."""

KINDS = {
    "agent": str,
    "env": str,
    "backend": str,
    "episode_length": int,
    "env_steps": int,
    "return_mean": int | float | None,
    "config": dict,
    "version": str,
}
"""Of the values of a description."""


class Policy(NamedTuple):
    """A deterministic policy and where it comes from."""

    params: networks.Params
    """`{"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}`; absent links are zeros."""
    about: dict[str, Any]
    """As of `describe`."""

    @numerics.by_usual_rules
    def act(self, observation: jax.Array) -> jax.Array:
        """Observation `[..., O]` to action `[..., A]` in [-1, 1]; jittable.

        Raises:
          ConfigError: an observation of another size.
        """
        names = networks.layers(self.params)
        features = [self.params[name]["bias"].shape[0] for name in names]
        expected, found = self.params[names[0]]["kernel"].shape[0], jnp.shape(observation)
        if found[-1:] != (expected,):
            raise ConfigError(
                f"this policy takes observations of shape [..., {expected}], not {list(found)}; give it those of the "
                f"task it was trained on ({self.about.get('env')})."
            )
        output = networks.forward(networks.MLP(features), self.params, None, jnp.asarray(observation, jnp.float32))
        return networks.deterministic_action(self.about["agent"], output)


def describe(config: RunConfig, env_steps: int, return_mean: float | None) -> dict[str, Any]:
    """What is saved with the policy or the masks of a run: what it takes to act, to train again, and the return."""
    return {
        "agent": config.agent,
        "env": config.env,
        "backend": config.backend,
        "episode_length": config.episode_length,
        "env_steps": env_steps,
        "return_mean": return_mean,
        "config": config.to_dict(),
        "version": __version__,
    }


def save(path: Path, params: networks.Params, about: Mapping[str, Any]) -> None:
    """Write a policy: arrays named `Dense_0/kernel` and so on, and `about` as of `describe`."""
    arrays = {
        f"{layer}/{name}": np.asarray(array) for layer, leaves in params.items() for name, array in leaves.items()
    }
    archives.save(path, about, arrays)


def load(path: str | Path) -> Policy:
    """Read a policy.

    Args:
      path: of the file, or of a run's directory.

    Raises:
      CheckpointError: there is none at `path`, or it is damaged: its arrays are not those that its own configuration
        makes, or not finite.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        about, arrays = archives.load(path, "policy", _arrays)
    except FileNotFoundError:
        raise CheckpointError(f"no policy at {path}; name the workdir of a run that has made an evaluation.") from None
    params: networks.Params = {}
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"the policy {path} is damaged ({key} is not finite); restore a copy, or make its run again."
            )
        layer, _, name = key.partition("/")
        params.setdefault(layer, {})[name] = jnp.asarray(array)
    return Policy(params, about)


def check(about: Mapping[str, Any]) -> Config:
    """The configuration that a description holds, which is complete.

    Raises:
      ValueError: it lacks something, or something is of another kind.
      ConfigError: its configuration cannot be.
    """
    archives.require(about, KINDS)
    config = Config.from_dict(about["config"])
    if not isinstance(config.hidden, tuple) or not all(type(width) is int and width >= 1 for width in config.hidden):
        raise ValueError(f"its description has hidden={str(config.hidden)[:40]}")
    if about["agent"] not in AGENTS or config.agent != about["agent"]:
        raise ValueError(f"its description has agent={about['agent'][:40]}")
    return config


def _arrays(
    about: dict[str, Any], headers: Mapping[str, archives.Announced]
) -> dict[str, tuple[tuple[int, ...], type[np.float32]]]:
    """What a policy must hold: the widths are its configuration's, inputs and outputs its own."""
    config = check(about)
    depth = len(config.hidden)
    inputs = archives.implied_size(headers, "Dense_0/kernel", 0)
    outputs = archives.implied_size(headers, f"Dense_{depth}/kernel", 1)
    shapes = networks.layer_shapes((inputs, *config.hidden, outputs))
    if outputs % networks.actor_sizes(config.agent, 1, 1, ())[-1]:
        raise ValueError(f"{outputs} outputs are no mean and deviation each")
    wanted: dict[str, tuple[tuple[int, ...], type[np.float32]]] = {}
    for i, shape in enumerate(shapes):
        wanted |= {f"Dense_{i}/kernel": (shape, np.float32), f"Dense_{i}/bias": (shape[1:], np.float32)}
    return wanted
