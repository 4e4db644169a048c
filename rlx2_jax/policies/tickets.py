"""Masks as files, and lottery tickets: runs that start from the masks another one ended with.

A finished run leaves `masks.npz`: the masks that its networks began and ended with, without any weights. A run with
`Config.ticket` begins with the final masks of such a file, and with the weights of its own initialisation. With the
seed of the run that found the masks these are the very values its dense networks were drawn with, also at links which
that run's first masks did not hold.

`Config.ticket_weights=release` is another reading. The authors' code keeps initial weights only after its first masks
have been applied to them, so that in its winning tickets every link that was absent from those starts at zero. (It also
keeps the masks of the best stretch of evaluations where these are the last ones.)

The file is an archive of NumPy arrays: `about`, a JSON string with the format's version, the shapes, the run's
configuration and step; and for each matrix `initial/actor/0`, `final/critic/2` and so on, one bit per entry.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlx2_jax import policies
from rlx2_jax.agents.base import FoundMasks
from rlx2_jax.config import Config, RunConfig, registry
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.io import archives
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import Structure, structure, templates

NAME = "masks.npz"
"""Name of the file in a run's directory."""

FORMAT = 1
"""Version of the file's format."""

Networks = dict[str, masking.Masks]
"""Boolean masks by network: `actor`, `critic`."""

Compressed = Mapping[str, Sequence[np.ndarray]]
"""Masks by network: of each matrix the bytes that `numpy.packbits` makes of its entries."""


class Ticket(NamedTuple):
    """The masks of a run, as NumPy arrays, and where they come from."""

    initial: Networks
    """Masks the run began with."""
    final: Networks
    """Masks the run ended with: the ticket that it found."""
    about: dict[str, Any]
    """`agent`, `env`, `env_steps`, `config` and what else was saved with them."""


def save(path: Path, initial: Networks, final: Networks, about: Mapping[str, Any]) -> None:
    """Write the masks that a run began and ended with.

    Args:
      path: of the file.
      initial: boolean masks of each network, not packed.
      final: of the same shapes.
      about: what to keep with them, as of `policies.describe`.
    """
    shapes = {network: [list(kernel.shape) for kernel in masking.kernels(tree)] for network, tree in final.items()}
    arrays = {
        f"{moment}/{network}/{i}": np.packbits(np.asarray(kernel))
        for moment, trees in (("initial", initial), ("final", final))
        for network, tree in trees.items()
        for i, kernel in enumerate(masking.kernels(tree))
    }
    archives.save(path, {**about, "format": FORMAT, "shapes": shapes}, arrays)


def load(path: str | Path) -> Ticket:
    """Read the masks of a run.

    Args:
      path: of the file, or of a run's directory.

    Raises:
      CheckpointError: there are none at `path`, or they are damaged: not those that their own configuration makes, or
        of a format this version does not know.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        about, arrays = archives.load(path, "masks", _arrays)
    except FileNotFoundError:
        raise CheckpointError(f"no masks at {path}; name the directory of a finished run, or its {NAME}.") from None
    try:
        like = templates(*described(about))
        initial, final = (
            {
                network: _tree(
                    [_bits(arrays[f"{moment}/{network}/{i}"], shape) for i, shape in enumerate(shapes)], like[network]
                )
                for network, shapes in about["shapes"].items()
            }
            for moment in ("initial", "final")
        )
        for moment, trees in (("first_links", initial), ("links", final)):
            _check_links(trees, about, moment)
    except ValueError as error:
        raise CheckpointError(
            f"the masks {path} are damaged ({error}); restore a copy, or make their run again."
        ) from None
    return Ticket(initial, final, about)


def load_for(config: RunConfig, observation_size: int, action_size: int) -> dict[str, FoundMasks] | None:
    """Read the masks that a run is to begin with, if it names any.

    Args:
      config: of the run.
      observation_size: of its task.
      action_size: of its task.

    Raises:
      CheckpointError: as `load`.
      ConfigError: they are another run's than this one can begin with.
    """
    if config.ticket is None:
        return None
    path, ticket = config.ticket, load(config.ticket)
    about = ticket.about
    if about["agent"] != config.agent:
        raise ConfigError(
            f"ticket={path} holds masks of agent={about['agent']}, not {config.agent}; name one of {config.agent}."
        )
    for network, expected in structure(config, observation_size, action_size).items():
        found = [kernel.shape[-2:] for kernel in masking.kernels(ticket.final[network])]
        if found != [*expected.shapes]:
            raise ConfigError(
                f"ticket={path} has {network} matrices {_plain(found)}, this run {_plain(expected.shapes)}; use the "
                "env and the hidden widths that it was found with."
            )
        for kernel, count in zip(masking.kernels(ticket.final[network]), expected.first_links, strict=True):
            if (kernel.sum((-2, -1)) != count).any():
                held = about["config"][f"{network}_sparsity"]
                raise ConfigError(
                    f"ticket={path} has other numbers of links than this run's {network}; use the method's kind and "
                    f"the sparsity that it was found with ({network}_sparsity={held})."
                )
    return {network: FoundMasks(ticket.initial[network], ticket.final[network]) for network in ticket.final}


def expand(compressed: Sequence[np.ndarray], like: masking.Masks) -> masking.Masks:
    """Masks of one network from their bytes, in the shapes of others of the same network."""
    kernels = zip(compressed, masking.kernels(like), strict=True)
    return _tree([_bits(part, kernel.shape) for part, kernel in kernels], like)


def digest(path: str | Path) -> str:
    """What the final and initial masks at a path are, in a few characters: the same wherever the file lies.

    Raises:
      CheckpointError: as `load`.
    """
    ticket = load(path)
    hashed = hashlib.sha256()
    for trees in (ticket.initial, ticket.final):
        for network in sorted(trees):
            for kernel in masking.kernels(trees[network]):
                hashed.update(repr((network, kernel.shape)).encode() + np.packbits(kernel).tobytes())
    return hashed.hexdigest()[:16]


def check_shapes(about: Mapping[str, Any]) -> None:
    """Compare the shapes that a description of masks names with those that its configuration makes.

    Raises:
      ValueError: they are others, or there is no such configuration.
    """
    for network, own in structures(about).items():
        twins = [2] if network == "critic" else []
        if about["shapes"].get(network) != [[*twins, *shape] for shape in own.shapes]:
            raise ValueError(f"other {network} matrices than its configuration makes")


def structures(about: Mapping[str, Any]) -> dict[str, Structure]:
    """What the configuration in a description of masks makes of the networks.

    Raises:
      ValueError: there is no such configuration.
    """
    return structure(*described(about))


def described(about: Mapping[str, Any]) -> tuple[Config, int, int]:
    """The configuration, and the sizes of its task's observations and actions, of which the networks were made.

    Raises:
      ValueError: there is no such configuration.
    """
    config = policies.check(about)
    if about["shapes"].keys() != {"actor", "critic"}:
        raise ValueError("its description has impossible shapes")
    if "sizes" in about:
        observation_size, action_size = archives.sizes(about["sizes"], 2)
        return config, observation_size, action_size
    try:
        inputs, outputs = about["shapes"]["actor"][0][0], about["shapes"]["actor"][-1][1]
    except (KeyError, IndexError, TypeError):
        raise ValueError("its description has no shapes of an actor") from None
    inputs, outputs = archives.sizes([inputs, outputs], 2)
    return config, inputs, outputs // registry.find(config.agent).actor_outputs(1)


def _arrays(
    about: dict[str, Any], headers: Mapping[str, archives.Announced]
) -> dict[str, tuple[tuple[int, ...], type[np.uint8]]]:
    """What the masks of a run must hold: matrices of the shapes that its configuration makes."""
    archives.require(about, {"format": int, "shapes": dict})
    if about["format"] != FORMAT:
        raise ConfigError(
            f"they are of format {about['format']}, not {FORMAT}; make their run again with this version."
        )
    check_shapes(about)
    return {
        f"{moment}/{network}/{i}": ((math.ceil(math.prod(shape) / 8),), np.uint8)
        for moment in ("initial", "final")
        for network, shapes in about["shapes"].items()
        for i, shape in enumerate(shapes)
    }


def _check_links(found: Networks, about: Mapping[str, Any], moment: str) -> None:
    for network, own in structures(about).items():
        expected = zip(masking.kernels(found[network]), getattr(own, moment), strict=True)
        for i, (kernel, count) in enumerate(expected):
            links = kernel.sum((-2, -1))
            if (links != count).any():
                raise ValueError(f"{network} matrix {i} has {links} links, where its configuration makes {count}")


def _bits(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    count = math.prod(shape)
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)


def _tree(kernels: Sequence[np.ndarray], like: masking.Masks) -> masking.Masks:
    return masking.with_kernels(jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), like), kernels)


def _plain(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape[-2:])) for shape in shapes) or "none"
