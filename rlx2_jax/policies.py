"""Policies on their own: one `.npz` file that loads without trainer, environment or checkpoint."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax import __version__, files, networks, numerics
from rlx2_jax.config import Config
from rlx2_jax.errors import CheckpointError


class Policy(NamedTuple):
    """A deterministic policy and where it comes from."""

    params: networks.Params
    """`{"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}`; absent links are zeros."""
    about: dict[str, Any]
    """As of `describe`."""

    @numerics.by_usual_rules
    def act(self, observation: jax.Array) -> jax.Array:
        """Observation `[..., O]` to action `[..., A]` in [-1, 1]; jittable."""
        features = [self.params[name]["bias"].shape[0] for name in networks.layers(self.params)]
        output = networks.forward(networks.MLP(features), self.params, None, jnp.asarray(observation, jnp.float32))
        return networks.deterministic_action(self.about["agent"], output)


def describe(config: Config, env_steps: int, return_mean: float | None) -> dict[str, Any]:
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
    """Write a policy: arrays named `Dense_0/kernel` and so on, and `about` as a JSON string."""
    arrays: dict[str, Any] = {
        f"{layer}/{name}": np.asarray(array) for layer, leaves in params.items() for name, array in leaves.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.asarray(json.dumps(dict(about))), **arrays)
    files.write_bytes(path, buffer.getvalue())


def load(path: Path) -> Policy:
    """Read a policy.

    Raises:
      CheckpointError: there is none at `path`, or it is damaged (the archive keeps checksums).
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            params: networks.Params = {}
            for key in archive.files:
                if key != "about":
                    layer, _, name = key.partition("/")
                    params.setdefault(layer, {})[name] = jnp.asarray(archive[key])
    except FileNotFoundError:
        raise CheckpointError(f"no policy at {path}; name the workdir of a run that has made an evaluation.") from None
    except files.DAMAGED as error:
        raise CheckpointError(
            f"the policy {path} is damaged ({error}); restore a copy, or make its run again."
        ) from None
    return Policy(params, about)
