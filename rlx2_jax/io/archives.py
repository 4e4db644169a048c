"""Archives of NumPy arrays with a JSON object `about` them, as policies and masks are kept.

What is read has been announced first: `about` says which arrays there are to be, headers are compared with that, and
only then is anything of their size allocated. So a file that was damaged, or made to do damage, costs no memory.
"""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.errors import CheckpointError, ConfigError, FileError
from rlx2_jax.io import files
from rlx2_jax.runtime import memory

ABOUT = "about"
"""Name of the member that says what the others are."""

ABOUT_BYTES = 1 << 26
"""No description is longer: it has room for a long name of each of the most numbers in an observation and an action."""

WIDEST = 1 << 16
"""Numbers in an observation or an action, at most: what a description does not say, and arrays could claim."""

DAMAGED = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, RuntimeError, SyntaxError),
    *(MemoryError, OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What reading a damaged archive may raise; its headers are read as Python."""


class Announced(NamedTuple):
    """What a member's header says that it holds."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int
    """Bytes of the header."""


Expected = Callable[[dict[str, Any], Mapping[str, Announced]], Mapping[str, tuple[tuple[int, ...], Any]]]
"""(about, headers) -> shape and dtype of every array that there is to be.

Raises ValueError, or ConfigError, if these cannot be told; headers lack what the archive lacks.
"""


def save(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> None:
    """Write arrays by name, and what they are; compressed, unless they are so already."""
    buffer, write = io.BytesIO(), np.savez_compressed if compressed else np.savez
    write(buffer, allow_pickle=False, **{ABOUT: np.asarray(json.dumps(dict(about)))}, **arrays)
    files.write_bytes(path, buffer.getvalue())


def load(
    path: Path, what: str, expected: Expected, mend: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `save` wrote, in memory bounded by what `about` implies.

    Args:
      path: of the file.
      what: the noun for it in a sentence, such as `policy`; a plural one ends with s.
      expected: says which arrays there are to be.
      mend: what helps where it is damaged (default: a copy, or its run again).

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is damaged (the archive keeps checksums), or holds other arrays than expected.
    """
    try:
        with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive)
            about = _about(archive, members.pop(ABOUT))
            headers = {name: _header(archive, member) for name, member in members.items()}
            wanted = expected(about, headers)
            _compare(headers, members, wanted)
            needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in wanted.values())
            memory.check_fits(needed, "arrays that it announces", "use a machine with more memory", on_host=True)
            return about, {name: _array(archive, members[name], headers[name]) for name in wanted}
    except FileNotFoundError:
        raise
    except FileError as error:
        raise CheckpointError(str(error)) from None
    except ConfigError as error:
        raise CheckpointError(f"the {what} {path} cannot be used: {error}") from None
    except DAMAGED as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:200] or type(error).__name__
        is_, its = ("are", "their") if what.endswith("s") else ("is", "its")
        mend = mend or f"restore a copy, or make {its} run again"
        raise CheckpointError(f"the {what} {path} {is_} damaged ({reason}); {mend}.") from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members:
            raise ValueError(f"an unknown member {info.filename}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename} is compressed in an unknown way")
        members[name] = info
    if ABOUT not in members:
        raise ValueError("nothing says what it is")
    return members


def _about(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    header = _header(archive, member)
    if member.file_size > ABOUT_BYTES or header.dtype.kind != "U":
        raise ValueError("its description is no text, or too long")
    _compare({ABOUT: header}, {ABOUT: member}, {ABOUT: ((), header.dtype)})
    about = json.loads(str(_array(archive, member, header)))
    if not isinstance(about, dict):
        raise ValueError("its description is no JSON object")
    return about


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Announced:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{member.filename} is of an unknown format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        return Announced(shape, dtype, fortran, file.tell())


def _compare(
    headers: Mapping[str, Announced],
    members: Mapping[str, zipfile.ZipInfo],
    wanted: Mapping[str, tuple[tuple[int, ...], Any]],
) -> None:
    if other := sorted(headers.keys() ^ wanted.keys()):
        raise ValueError(f"{other[0]} {'is missing' if other[0] in wanted else 'does not belong there'}")
    for name, (shape, dtype) in wanted.items():
        found, dtype = headers[name], np.dtype(dtype)
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
        if members[name].file_size != found.start + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has not the length that it announces")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, announced: Announced) -> np.ndarray:
    with archive.open(member) as file:
        data = file.read(member.file_size)  # No more of it, and at its end the checksum is compared.
    flat = np.frombuffer(data, announced.dtype, offset=announced.start)
    return flat.reshape(announced.shape, order="F" if announced.fortran else "C").copy()


def implied_size(headers: Mapping[str, Announced], name: str, axis: int) -> int:
    """The length of an axis that a description leaves open.

    Raises:
      ValueError: the array is missing, or wider than anything is.
    """
    if name not in headers:
        raise ValueError(f"{name} is missing")
    shape = headers[name].shape
    if len(shape) != 2 or not 1 <= shape[axis] <= WIDEST:
        raise ValueError(f"{name} has the shape {list(shape)}")
    return shape[axis]


def sizes(values: Any, count: int) -> tuple[int, ...]:
    """So many sizes that a description names.

    Raises:
      ValueError: they are none.
    """
    if type(values) is not list or len(values) != count:
        raise ValueError("its description has impossible shapes")
    if not all(type(size) is int and 1 <= size <= WIDEST for size in values):
        raise ValueError("its description has impossible shapes")
    return tuple(values)


def require(about: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Compare a description with the kinds of its values.

    Raises:
      ValueError: one is missing, or of another kind.
    """
    for name, kind in kinds.items():
        if name not in about:
            raise ValueError(f"its description lacks {name}")
        if not isinstance(about[name], kind) or (isinstance(about[name], bool) and kind is not bool):
            raise ValueError(f"its description has {name}={str(about[name])[:40]}")
