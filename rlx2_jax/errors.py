"""User errors. Launchers print them as one sentence and exit with code 2, or 1 for a diverged run."""

from __future__ import annotations

from typing import Self


class RlxError(Exception):
    """A user error: the message is one sentence that says what to do about it."""

    def adding(self, more: str) -> Self:
        """Copy of the error whose sentence goes on with `more`, for instance what is kept."""
        return type(self)(f"{str(self).rstrip('.')}; {more}.")


class ConfigError(RlxError, ValueError):
    """An invalid configuration: an unknown name, an impossible sparsity, sizes that do not fit."""


class WorkdirError(RlxError):
    """A workdir that cannot be used: it is read-only, or holds another run or foreign files."""


class FileError(WorkdirError, OSError):
    """A file that cannot be written, or whose content is not what it should be."""


class CheckpointError(RlxError):
    """A checkpoint that is missing, damaged or of another run."""


class DivergedError(RlxError):
    """A run that diverged: its values are no longer finite, or no longer equal on all devices."""
