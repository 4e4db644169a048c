"""Masks over training: which links a run had, from its first step on.

A run leaves `topology.npz`: the masks that it began with, and those at evaluations, as far as they had changed since
the ones before. There are at most `SNAPSHOTS` of them: of a run with N evaluations the first, every k-th and the last
is looked at, k = ceil(N / (SNAPSHOTS - 2)), so what is kept does not depend on where the run stopped in between.

The file is an archive of NumPy arrays: `about`, a JSON string as that of `masks.npz` with `steps`, at which the
snapshots were taken; and for each a member `0`, `1` and so on, bytes that zlib has compressed:

    bits_i   = numpy.packbits of each matrix at steps[i], actor before critic, in the order of `masking.kernels`
    member i = zlib(bits_i xor bits_{i-1}),   bits_{-1} = 0

Between two snapshots few links move, so nearly all bytes are zero. Nothing is compressed twice, and the file is written
anew with each snapshot: it is whole at any time.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.config import RunConfig
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.io import archives
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import orders, templates
from rlx2_jax.policies import tickets
from rlx2_jax.runtime import memory

NAME = "topology.npz"
"""Name of the file in a run's directory."""

FORMAT = 1
"""Version of the file's format."""

SNAPSHOTS = 64
"""In a file, at most."""

NETWORKS = ("actor", "critic")
"""In the order of a snapshot's bytes; both critics are one network."""

Shapes = Mapping[str, Sequence[Sequence[int]]]
"""Shapes of the matrices of each network, as they are stored; those of a critic begin with 2."""


class History(NamedTuple):
    """The masks of a run over its training."""

    steps: tuple[int, ...]
    """Environment steps (of a clone, updates) at which the snapshots were taken, the first at 0."""
    packed: np.ndarray
    """`[snapshots, bytes]`, uint8: bits of the masks, as the module says."""
    about: dict[str, Any]
    """`agent`, `env`, `config`, `shapes` and what else describes the run."""

    @property
    def labels(self) -> Labels:
        """What the entries of observations and actions are called."""
        return Labels.read(self.about, *tickets.described(self.about)[1:])

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return tickets.described(self.about)[1]

    def masks(self, snapshot: int, network: str) -> list[np.ndarray]:
        """Boolean masks of a network's matrices, input to output: `[in, out]`, of critics `[2, in, out]`."""
        found = self._stored(snapshot, network)
        return [found[i] for i in self.order(network)]

    def order(self, network: str) -> tuple[int, ...]:
        """Places of a network's matrices among the stored ones, in the order of their calls."""
        return orders(*tickets.described(self.about))[network]

    def _stored(self, snapshot: int, network: str) -> list[np.ndarray]:
        places = _places(self.about["shapes"])
        return [_bits(self.packed[snapshot, start:end], shape) for name, shape, start, end in places if name == network]

    def matrices(self, snapshot: int, network: str) -> list[np.ndarray]:
        """Boolean masks of one network's matrices `[in, out]`, input to output; of twin critics the first's."""
        return [mask[0] if mask.ndim == 3 else mask for mask in self.masks(snapshot, network)]

    def before(self, step: int) -> int:
        """The last snapshot that was taken at a step, or before it: the masks that the run had then."""
        return max(int(np.searchsorted(self.steps, step, "right")) - 1, 0)

    def links(self, network: str) -> np.ndarray:
        """Links of each matrix at each snapshot, `[snapshots, matrices]`; of the first critic where there are two."""
        return np.array([[mask.sum() for mask in self.matrices(i, network)] for i in range(len(self.steps))])


def load(path: str | Path) -> History:
    """Read the masks of a run over its training.

    Args:
      path: of the file, or of a run's directory; where a directory has none, as that of a clone or of an older run,
        the masks that it began and ended with are its history.

    Raises:
      CheckpointError: there are none at `path`, or they are damaged: not those that their own configuration makes, or
        of a format this version does not know.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        about, arrays = archives.load(file, "masks", _arrays)
    except FileNotFoundError:
        if (path / tickets.NAME).exists():
            return _of_ticket(tickets.load(path))
        raise CheckpointError(f"no masks at {file}; name the directory of a run, or its {NAME}.") from None
    try:
        changes = [_decompressed(arrays[str(i)], about["shapes"]) for i in range(len(about["steps"]))]
        history = History(tuple(about["steps"]), np.bitwise_xor.accumulate(changes, axis=0), about)
        for i, network in itertools.product(range(len(history.steps)), NETWORKS):
            _check_links(history._stored(i, network), about, network)
    except (ValueError, zlib.error) as error:
        raise CheckpointError(
            f"the masks {file} are damaged ({error}); restore a copy, or make their run again."
        ) from None
    return history


class Recorder:
    """A run's history while it is made, in the run's directory."""

    def __init__(
        self, path: Path, config: RunConfig, sizes: tuple[int, int], describe: Callable[[int], dict[str, Any]]
    ):
        """Prepare; nothing is written before `begin`.

        Args:
          path: of the file.
          config: of the run.
          sizes: entries of an observation and of an action.
          describe: `policies.describe` of the run, by its environment steps.
        """
        self._path = path
        self._config = config
        self._every = math.ceil(config.num_evaluations / (SNAPSHOTS - 2))
        self._describe = describe
        like = templates(config, *sizes)
        self._shapes = {name: [list(kernel.shape) for kernel in masking.kernels(like[name])] for name in NETWORKS}
        self._steps: list[int] = []
        self._members: list[np.ndarray] = []
        self._last = np.zeros(_bytes(self._shapes), np.uint8)

    def begin(self, env_steps: int, first: tickets.Compressed) -> str | None:
        """Begin at a step: later snapshots in the file are forgotten, earlier ones kept.

        Args:
          env_steps: the step.
          first: masks that the run began with.

        Returns:
          A sentence, if the file has not the earlier ones.
        """
        initial = np.concatenate([np.asarray(part) for name in NETWORKS for part in first[name]])
        told = None
        if env_steps > 0:
            try:
                self._keep(load(self._path), env_steps, initial)
            except CheckpointError:
                told = f"{self._path} is not as the run had written it; of the masks up to step {env_steps:,} it keeps "
                told += "those that the run began with"
        if not self._steps:
            self._append(0, initial)
        self._write()
        return told

    def add(self, env_steps: int, masks: Mapping[str, masking.Masks]) -> None:
        """Take a snapshot of the masks at an evaluation, if one is due and they have changed."""
        number = env_steps // self._config.eval_every
        if number % self._every and number != self._config.num_evaluations:
            return
        bits = _packed(masks)
        if not np.array_equal(bits, self._last):
            self._append(env_steps, bits)
            self._write()

    def _keep(self, found: History, env_steps: int, initial: np.ndarray) -> None:
        if not np.array_equal(found.packed[0], initial):
            raise CheckpointError(f"the masks {self._path} are those of another run.")
        for step, bits in zip(found.steps, found.packed, strict=True):
            if step <= env_steps:
                self._append(step, bits)

    def _append(self, step: int, bits: np.ndarray) -> None:
        self._steps.append(step)
        self._members.append(np.frombuffer(zlib.compress((bits ^ self._last).tobytes()), np.uint8))
        self._last = bits

    def _write(self) -> None:
        about = self._describe(self._steps[-1]) | {"format": FORMAT, "shapes": self._shapes, "steps": self._steps}
        members = {str(i): member for i, member in enumerate(self._members)}
        archives.save(self._path, about, members, compressed=False)


def _packed(masks: Mapping[str, masking.Masks]) -> np.ndarray:
    kernels = [kernel for name in NETWORKS for kernel in masking.kernels(masks[name])]
    return np.concatenate([np.packbits(np.asarray(kernel)) for kernel in kernels])


def _places(shapes: Shapes) -> Iterator[tuple[str, Sequence[int], int, int]]:
    """Network and shape of each matrix, and where its bytes begin and end."""
    end = 0
    for name in NETWORKS:
        for shape in shapes[name]:
            start, end = end, end + math.ceil(math.prod(shape) / 8)
            yield name, shape, start, end


def _bytes(shapes: Shapes) -> int:
    return max(end for *_, end in _places(shapes))


def _bits(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)


def _arrays(
    about: dict[str, Any], headers: Mapping[str, archives.Announced]
) -> dict[str, tuple[tuple[int, ...], type[np.uint8]]]:
    """What the file must hold: a member of bytes for each snapshot, of whatever length one of its size can have."""
    archives.require(about, {"format": int, "shapes": dict, "steps": list})
    if about["format"] != FORMAT:
        raise ConfigError(
            f"they are of format {about['format']}, not {FORMAT}; make their run again with this version."
        )
    tickets.check_shapes(about)
    steps = about["steps"]
    in_order = all(type(step) is int for step in steps) and all(a < b for a, b in itertools.pairwise(steps))
    if not (in_order and steps[:1] == [0] and len(steps) <= SNAPSHOTS):
        raise ValueError(f"its description has impossible steps {str(steps)[:40]}")
    size = _bytes(about["shapes"])
    memory.check_fits(size * len(steps), "masks that it announces", "use a machine with more memory", on_host=True)
    return {str(i): ((_length(headers, str(i), size),), np.uint8) for i in range(len(steps))}


def _length(headers: Mapping[str, archives.Announced], name: str, size: int) -> int:
    """Bytes of a member, which has no more than zlib makes of `size` bytes."""
    if name not in headers:
        raise ValueError(f"{name} is missing")
    shape = headers[name].shape
    if len(shape) != 1 or shape[0] > size + size // 1000 + 64:
        raise ValueError(f"{name} has the shape {list(shape)}")
    return shape[0]


def _decompressed(member: np.ndarray, shapes: Shapes) -> np.ndarray:
    size, stream = _bytes(shapes), zlib.decompressobj()
    data = stream.decompress(member.tobytes(), size + 1)
    if len(data) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"a snapshot has not the {size:,} bytes of its shapes")
    return np.frombuffer(data, np.uint8)


def _check_links(masks: Sequence[np.ndarray], about: Mapping[str, Any], network: str) -> None:
    own = tickets.structures(about)[network]
    for i, (mask, start, end) in enumerate(zip(masks, own.start_links, own.links, strict=True)):
        links = mask.sum((-2, -1))
        if (links < min(start, end)).any() or (links > max(start, end)).any():
            wanted = f"{end}" if start == end else f"{min(start, end)} to {max(start, end)}"
            raise ValueError(f"{network} matrix {i} has {links} links, where its configuration makes {wanted}")


def _of_ticket(ticket: tickets.Ticket) -> History:
    first, last = _packed(ticket.initial), _packed(ticket.final)
    if np.array_equal(first, last):
        return History((0,), first[None], ticket.about)
    end = ticket.about.get("updates", ticket.about["env_steps"])
    return History((0, end), np.stack([first, last]), ticket.about)
