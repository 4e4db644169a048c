"""trackio: a database on this machine, under `TRACKIO_DIR`, shown by `trackio show`; or where its variables point.

The project is `TRACKIO_PROJECT`, or rlx2_jax. trackio finds a run by its name alone, so the name ends with the id in
`trackio.json`, and a resumed run goes on with the same one. Steps are environment steps.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
from collections.abc import Mapping
from typing import Any

from rlx2_jax.training.loggers.base import PROJECT, Kept, Run


class Trackio:
    """One run of trackio's."""

    def __init__(self, run: Run):
        """Begin, or go on with, the run there."""
        import trackio

        self._kept = Kept(run, "trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # In a context of its own: a run that begins ends the one that its context knows, and a sweep has many.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run: Any = contextvars.Context().run(
                trackio.init,
                project=project,
                name=f"{run.name}-{self._kept.id}",
                group=run.group,
                config=run.config.to_dict(),
                resume="allow",
                embed=False,
            )
        run.say(f"trackio shows the run: trackio show --project {project}")

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Store one evaluation, unless it was stored before the run was resumed."""
        if not self._kept.reached(step):
            self._run.log(dict(row), step=step)
            self._kept.reach(step)

    def flush(self) -> None:
        """Leave it to trackio's own thread, which stores as it is given."""

    def close(self) -> None:
        """Store what is left, and end."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


logger = Trackio
