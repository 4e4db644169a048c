"""Text streams whose reader may go away while a program still has work to do."""

from __future__ import annotations

import contextlib
from typing import Any, TextIO


class Stream:
    """A text stream that loses what cannot be written, where the stream it stands for would raise."""

    def __init__(self, stream: TextIO, *lost: type[OSError]):
        """Stand for a stream; of the errors of writing, those of the given types are swallowed."""
        self._stream = stream
        self._lost = lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        with contextlib.suppress(*self._lost):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over, or lose, what was written."""
        with contextlib.suppress(*self._lost):
            self._stream.flush()
