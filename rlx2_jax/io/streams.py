"""Text streams whose reader may go away while a program still has work to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from rlx2_jax.errors import RlxError


class Stream:
    """A text stream that loses what cannot be written, or says once in one sentence that it cannot be."""

    def __init__(self, stream: TextIO, *lost: type[OSError]):
        """Stand for a stream; errors of the given types lose what was written, others are a sentence."""
        self._stream = stream
        self._lost = lost
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or lose, a text.

        Raises:
          RlxError: it cannot be written, the first time.
        """
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand over, or lose, what was written.

        Raises:
          RlxError: it cannot be written, the first time.
        """
        self._try(self._stream.flush)

    def _try(self, what: Callable[[], object]) -> None:
        if self._ended:
            return
        try:
            what()
        except OSError as error:
            self._ended = True
            if not isinstance(error, self._lost):
                raise RlxError(f"what is printed cannot be written ({error.strerror}); send it elsewhere.") from None
