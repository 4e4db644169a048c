"""What simulators print at import and creation, silenced: none of it concerns a user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither Brax, MuJoCo nor Gymnasium says anything, or writes a file, while entered."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            import mujoco

            # Also keeps MUJOCO_LOG.TXT out of the working directory.
            mujoco.set_mju_user_warning(lambda message: None)
            yield
        finally:
            logging.disable(disabled)
