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
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax import files
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.sparsity import masks as masking

NAME = "masks.npz"
"""Of the file in a run's directory."""

FORMAT = 1

Networks = dict[str, masking.Masks]
"""Boolean masks by network: `actor`, `critic`."""

Compressed = Mapping[str, Sequence[np.ndarray]]
"""Masks by network: of each matrix the bytes that `numpy.packbits` makes of its entries."""


class Ticket(NamedTuple):
    """The masks of a run, as NumPy arrays, and where they come from."""

    initial: Networks
    """Those it began with."""
    final: Networks
    """Those it ended with: the ticket that it found."""
    about: dict[str, Any]
    """`agent`, `env`, `env_steps`, `config` and what else was saved with them."""


def save(path: Path, initial: Networks, final: Networks, about: Mapping[str, Any]) -> None:
    """Write the masks that a run began and ended with.

    Args:
      path: of the file.
      initial: boolean masks of each network, not packed.
      final: of the same shapes.
      about: plain values to go with them, `agent` among them.
    """
    shapes = {network: [list(kernel.shape) for kernel in masking.kernels(tree)] for network, tree in final.items()}
    arrays = {
        f"{moment}/{network}/{i}": np.packbits(np.asarray(kernel))
        for moment, networks in (("initial", initial), ("final", final))
        for network, tree in networks.items()
        for i, kernel in enumerate(masking.kernels(tree))
    }
    described = json.dumps({**about, "format": FORMAT, "shapes": shapes})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, about=np.asarray(described), **arrays)
    files.write_bytes(path, buffer.getvalue())


def load(path: str | Path) -> Ticket:
    """Read the masks of a run.

    Args:
      path: of the file, or of a run's directory.

    Raises:
      CheckpointError: there are none at `path`, or they are damaged (the archive keeps checksums), or of a format this
        version does not know.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            if about["format"] == FORMAT:
                initial, final = (
                    {
                        network: _tree([_bits(archive[f"{moment}/{network}/{i}"], s) for i, s in enumerate(shapes)])
                        for network, shapes in about["shapes"].items()
                    }
                    for moment in ("initial", "final")
                )
                return Ticket(initial, final, about)
    except FileNotFoundError:
        raise CheckpointError(f"no masks at {path}; name the directory of a finished run, or its {NAME}.") from None
    except files.DAMAGED as error:
        raise CheckpointError(
            f"the masks {path} are damaged ({error}); restore a copy, or make their run again."
        ) from None
    raise CheckpointError(
        f"the masks {path} are of format {about['format']}, not {FORMAT}; make their run again with this version."
    )


def load_for(
    path: str | Path,
    agent: str,
    shapes: Mapping[str, Sequence[tuple[int, int]]],
    links: Mapping[str, Sequence[int]],
) -> Ticket:
    """Read the masks that a run is to begin with.

    Args:
      path: of the file, or of a run's directory.
      agent: the run's algorithm.
      shapes: `(in, out)` of each matrix of the run's actor, and of one critic.
      links: how many links each is to have.

    Raises:
      CheckpointError: as `load`.
      ConfigError: they are another run's than this one can begin with.
    """
    ticket = load(path)
    about = ticket.about
    if about["agent"] != agent:
        raise ConfigError(f"ticket={path} holds masks of agent={about['agent']}, not {agent}; name one of {agent}.")
    for network, expected in shapes.items():
        kernels = masking.kernels(ticket.final.get(network, {}))
        found = [kernel.shape for kernel in kernels]
        twins = (2,) if network == "critic" else ()
        wanted = [(*twins, *shape) for shape in expected]
        if found != wanted:
            raise ConfigError(
                f"ticket={path} has {network} matrices {_plain(found)}, this run {_plain(wanted)}; use the env and the "
                "hidden widths that it was found with."
            )
        for kernel, count in zip(kernels, links[network], strict=True):
            if (kernel.sum((-2, -1)) != count).any():
                held = about["config"][f"{network}_sparsity"]
                raise ConfigError(
                    f"ticket={path} has other numbers of links than this run's {network}; use the method's kind and "
                    f"the sparsity that it was found with ({network}_sparsity={held})."
                )
    return ticket


def expand(compressed: Sequence[np.ndarray], like: masking.Masks) -> masking.Masks:
    """Masks of one network from their bytes, in the shapes of others of the same network."""
    return _tree([_bits(part, kernel.shape) for part, kernel in zip(compressed, masking.kernels(like), strict=True)])


def digest(path: str | Path) -> str:
    """What the final and initial masks at a path are, in a few characters: the same wherever the file lies.

    Raises:
      CheckpointError: as `load`.
    """
    ticket = load(path)
    hashed = hashlib.sha256()
    for networks in (ticket.initial, ticket.final):
        for network in sorted(networks):
            for kernel in masking.kernels(networks[network]):
                hashed.update(repr((network, kernel.shape)).encode() + np.packbits(kernel).tobytes())
    return hashed.hexdigest()[:16]


def _bits(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    count = math.prod(shape)
    if packed.shape != (math.ceil(count / 8),):
        raise ValueError(f"{packed.size} bytes for a mask of {count} bits")
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)


def _tree(kernels: Sequence[np.ndarray]) -> masking.Masks:
    return {
        f"Dense_{i}": {"kernel": kernel, "bias": np.ones((*kernel.shape[:-2], kernel.shape[-1]), bool)}
        for i, kernel in enumerate(kernels)
    }


def _plain(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape[-2:])) for shape in shapes) or "none"
