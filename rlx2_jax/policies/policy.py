"""Policies on their own: one `.npz` file that loads without trainer, environment or checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax import __version__, networks
from rlx2_jax.config import AGENTS, Config, RunConfig, registry
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.io import archives, provenance
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import nets, templates
from rlx2_jax.runtime import numerics
from rlx2_jax.sparse import trees

NAME = "policy.npz"
"""Name of the file in a run's directory."""

FILES = {"last": NAME, "best": "policy_best.npz"}
"""Names of a run's policies: that of the last evaluation, and that of the best one."""

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
"""Types of the values of a description."""


def locate(workdir: Path | None, which: str) -> Path:
    """The file of a run's policy.

    Args:
      workdir: of the run, as a person named it; None if it was not named.
      which: one of `FILES`.

    Raises:
      ConfigError: no directory, or a policy that runs do not leave.
    """
    if workdir is None:
        raise ConfigError("no workdir given; name a run's directory with --workdir.")
    if which not in FILES:
        raise ConfigError(f"unknown policy {which!r}; valid: {', '.join(FILES)}.")
    return workdir / FILES[which]


class Policy(NamedTuple):
    """A policy and where it comes from."""

    params: networks.Params
    """Flax's tree, such as `{"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}`; absent links are zeros."""
    about: dict[str, Any]
    """Description, as `describe` makes it."""

    def __repr__(self) -> str:
        """One line, for the weights would fill a screen."""
        observations, actions = self.sizes
        return (
            f"<Policy: {self.about['agent']} on {self.about['env']}, {self.about['env_steps']:,} steps, "
            f"{observations} observations to {actions} actions>"
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of an observation and of an action."""
        if "sizes" in self.about:
            return tuple(self.about["sizes"])
        kernels = masking.kernels(self.params)
        outputs = registry.find(self.about["agent"]).actor_outputs(1)
        return kernels[0].shape[0], kernels[-1].shape[1] // outputs

    @property
    def labels(self) -> Labels:
        """What the entries of an observation and of an action are called, and limits of the actions."""
        return Labels.read(self.about, *self.sizes)

    @numerics.by_usual_rules
    def act(self, observation: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Observation `[..., O]` to action `[..., A]` in [-1, 1]; jittable.

        Args:
          observation: of the task.
          key: draws the action from the policy's distribution, as its agent explores; without one it is noise-free.

        Raises:
          ConfigError: an observation of another size, or a key for an agent whose policy has no distribution.
        """
        (expected, actions), found = self.sizes, jnp.shape(observation)
        if found[-1:] != (expected,):
            raise ConfigError(
                f"this policy takes observations of shape [..., {expected}], not {list(found)}; give it those of the "
                f"task it was trained on ({self.about.get('env')})."
            )
        net = nets(Config.from_dict(self.about["config"]), actions)["actor"]
        output = net.apply(self.params, jnp.asarray(observation, jnp.float32))
        agent = registry.find(self.about["agent"])
        return agent.act(output) if key is None else agent.sample_action(output, key)


def describe(
    config: RunConfig,
    env_steps: int,
    return_mean: float | None,
    sizes: tuple[int, int] | None = None,
    named: Labels | None = None,
) -> dict[str, Any]:
    """What is saved with the policy or the masks of a run: what it takes to act, to train again, and the return.

    Args:
      config: of the run.
      env_steps: that it was trained for.
      return_mean: of the last evaluation, if there was one.
      sizes: entries of an observation and of an action; without them, those of the outermost matrices are taken.
      named: what they are called, and limits of the actions; without them, they are numbered.
    """
    return {
        **({} if sizes is None else {"sizes": list(sizes)}),
        **({} if named is None else named._asdict()),
        "agent": config.agent,
        "env": config.env,
        "backend": config.backend,
        "episode_length": config.episode_length,
        "env_steps": env_steps,
        "return_mean": return_mean,
        "config": config.to_dict(),
        "version": __version__,
        "commit": provenance.commit(),
    }


def trained_for(about: Mapping[str, Any]) -> str:
    """How long the policy of a description was trained, such as `1,000,000 steps`; a clone counts updates."""
    return f"{about['updates']:,} updates" if "updates" in about else f"{about['env_steps']:,} steps"


def save(path: Path, params: networks.Params, about: Mapping[str, Any]) -> None:
    """Write a policy: arrays named by their paths, such as `Dense_0/kernel`, and `about` as of `describe`."""
    archives.save(path, about, {name: np.asarray(array) for name, array in trees.by_path(params).items()})


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
        *rooms, name = key.split("/")
        functools.reduce(lambda tree, room: tree.setdefault(room, {}), rooms, params)[name] = jnp.asarray(array)
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
    if (about["agent"] not in AGENTS and ":" not in about["agent"]) or config.agent != about["agent"]:
        raise ValueError(f"its description has agent={about['agent'][:40]}")
    if "commit" in about:
        archives.require(about, {"commit": str | None})
    return config


def _arrays(
    about: dict[str, Any], headers: Mapping[str, archives.Announced]
) -> dict[str, tuple[tuple[int, ...], type[np.float32]]]:
    """What a policy must hold: the parameters of its configuration's actor, for its inputs and outputs."""
    config = check(about)
    per_action = registry.find(config.agent).actor_outputs(1)
    if "sizes" in about:
        inputs, actions = archives.sizes(about["sizes"], 2)
    else:
        inputs = archives.implied_size(headers, "Dense_0/kernel", 0)
        outputs = archives.implied_size(headers, f"Dense_{len(config.hidden)}/kernel", 1)
        actions = outputs // per_action
        if outputs % per_action:
            raise ValueError(f"{outputs} outputs are no mean and deviation each")
    Labels.read(about, inputs, actions)
    template = templates(config, inputs, actions)["actor"]
    return {path: (leaf.shape, np.float32) for path, leaf in trees.by_path(template).items()}
