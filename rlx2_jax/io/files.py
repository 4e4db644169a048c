"""Files that are never half-written, for they are made aside, then renamed; and files of lines, which grow.

Whatever goes wrong with one is a `FileError` of one sentence: a full disk, a directory that is gone, a folder or a
device in the place of a file, bytes that are no text, text that is no JSON, JSON of another kind.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx2_jax.errors import FileError

TEMPORARY = ".tmp"
"""Suffix of the name of a file that is not yet whole."""

FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
"""Errors that more space would mend."""

RESTORE = "restore a copy, or name another place"
"""What helps where a file is damaged, unless a reader knows better."""


def make_writable(directory: Path) -> None:
    """Make a directory, and see that files can be made in it.

    Raises:
      OSError: they cannot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what goes wrong inside, where a path is written, in one sentence.

    Raises:
      FileError: for any OSError.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        mend = "make it writable, or name another place"
        if error.errno in FULL:
            mend = "free space there, or name another place"
        elif error.errno == errno.ENOENT:
            mend = "put its directory back, or name another place"
        raise FileError(f"{path} cannot be written ({error.strerror or error}); {mend}.") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's contents in one step; where a link stands, those of the file it leads to.

    Raises:
      FileError: it cannot be written, or something else than a file stands there.
    """
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    with writing(path):
        _require_file(target, "name another place")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def remove_unfinished(path: Path) -> None:
    """Remove what a process that was killed while it wrote a file has left beside it; none may be writing it."""
    with writing(path):
        for aside in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
            if aside.name.removeprefix(f".{path.name}.").removesuffix(TEMPORARY).isdecimal():
                aside.unlink(missing_ok=True)


def open_file(path: Path, mend: str = RESTORE) -> io.BufferedReader:
    """Open a file to be read.

    Args:
      path: of the file.
      mend: what helps where it cannot be read.

    Raises:
      FileNotFoundError: there is none.
      FileError: it cannot be read, or is a folder or a device.
    """
    try:
        _require_file(path, mend)
        return open(path, "rb")
    except (FileNotFoundError, FileError):
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); {mend}.") from None


def _require_file(path: Path, mend: str) -> None:
    """Refuse a folder, a pipe or a device: one would wait for ever, another be lost."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'}, not a file; {mend}.")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; NaN and infinities become null."""
    write_bytes(path, (json.dumps(plain(value), indent=2) + "\n").encode())


def read_json(path: Path, missing: Any, kind: type = dict, mend: str = RESTORE) -> Any:
    """The value of a JSON file, or `missing` where there is none.

    Args:
      path: of the file.
      missing: given back where there is none.
      kind: of the value.
      mend: what helps where it is damaged.

    Raises:
      FileError: it cannot be read, or holds no JSON of this kind.
    """
    text = _read_text(path, mend)
    return missing if text is None else _parse(text, path, kind, mend)


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file of one JSON object per line."""
    write_bytes(path, "".join(json_line(row) for row in rows).encode())


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object to a file of lines: all of the line, or none of it."""
    data = json_line(row).encode()
    with writing(path):
        _require_file(path, "name another place")
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                file.truncate(before)
                raise


def json_line(row: Mapping[str, Any]) -> str:
    """One JSON object as a line; NaN and infinities become null."""
    return json.dumps(plain(row)) + "\n"


def read_json_lines(path: Path, mend: str = RESTORE, *, whole: bool = False) -> list[dict[str, Any]]:
    """The objects of a file of lines, without a last line cut short by a crash; none if there is no file.

    Args:
      path: of the file.
      mend: what helps where it is damaged.
      whole: refuse a last line cut short, too.

    Raises:
      FileError: it cannot be read, or a line is no JSON object.
    """
    text = _read_text(path, mend)
    lines = (text or "").split("\n")
    last = lines.pop()
    rows = [_parse(line, path, dict, mend) for line in lines]
    if last:
        try:
            rows.append(_parse(last, path, dict, mend))
        except FileError:
            if whole:
                raise
    return rows


def plain(value: Any) -> Any:
    """A value as it is read back from JSON: NaN and infinities become null, tuples lists."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read_text(path: Path, mend: str) -> str | None:
    try:
        with open_file(path, mend) as file:
            return file.read().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise FileError(f"{path} is damaged (no UTF-8 text); {mend}.") from None


def _parse(text: str, path: Path, kind: type, mend: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise FileError(f"{path} is damaged (no JSON); {mend}.") from None
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else f"a {kind.__name__}"
        raise FileError(f"{path} is damaged (a JSON {type(value).__name__}, not {wanted}); {mend}.")
    return value
