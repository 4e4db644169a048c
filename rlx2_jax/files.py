"""Files that are never half-written, for they are made aside, then renamed; and files of lines, which grow."""

from __future__ import annotations

import json
import math
import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What reading a damaged archive of arrays may raise; its headers are read as Python."""


ASIDE = ".tmp"
"""What the name of a file that is not yet whole ends with."""


def make_writable(directory: Path) -> None:
    """Make a directory, and see that files can be made in it.

    Raises:
      OSError: they cannot.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's contents in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what a process that was killed while it wrote a file has left beside it; none may be writing it."""
    for aside in path.parent.glob(f".{path.name}.*{ASIDE}"):
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; NaN and infinities become null."""
    write_bytes(path, (json.dumps(_plain(value), indent=2) + "\n").encode())


def read_json(path: Path, missing: Any) -> Any:
    """The value of a JSON file, or `missing` where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file of one JSON object per line."""
    write_bytes(path, "".join(json_line(row) for row in rows).encode())


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object to a file of lines, in one write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(row))


def json_line(row: Mapping[str, Any]) -> str:
    """One JSON object as a line; NaN and infinities become null."""
    return json.dumps(_plain(row)) + "\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, without a last line cut short by a crash; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
