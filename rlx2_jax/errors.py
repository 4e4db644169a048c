"""Errors a user can mend. Launchers print them as one sentence and exit with code 2, or 1 for a diverged run."""

from __future__ import annotations

from typing import Self


class RlxError(Exception):
    """Something the user can mend; the message is one sentence that says how."""

    def adding(self, more: str) -> Self:
        """The same error, whose sentence goes on with `more`, such as what is kept."""
        return type(self)(f"{str(self).rstrip('.')}; {more}.")


class ConfigError(RlxError, ValueError):
    """A configuration that cannot be: an unknown name, an impossible sparsity, sizes that do not fit."""


class WorkdirError(RlxError):
    """A workdir that cannot be used: read-only, holding another run, or something that is no run's."""


class FileError(WorkdirError, OSError):
    """A file that cannot be written, or that holds something else than it should."""


class CheckpointError(RlxError):
    """A checkpoint that is missing, damaged or of another run."""


class DivergedError(RlxError):
    """A run whose values stopped being finite, or the same on all of its devices."""
