"""Imports all of the package, and trains, without what Windows has not: `python -m tests.unlike_unix WORKDIR SETTINGS`.

The package's own modules see `os` and `signal` without the names that Windows lacks, and no module that is of Unix
alone. What others import is as it is: how they do on Windows is their business.
"""

from __future__ import annotations

import builtins
import importlib
import json
import pkgutil
import signal
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ABSENT = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
"""Modules that Windows has not."""

LACKING: Mapping[str, Sequence[str]] = {
    "os": (
        *("chown", "chroot", "ctermid", "fchdir", "fchmod", "fchown", "fdatasync", "fork", "forkpty", "getegid"),
        *("geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getresuid", "getsid"),
        *("getuid", "initgroups", "killpg", "lchown", "lockf", "major", "mkfifo", "mknod", "nice", "openpty"),
        *("pathconf", "pidfd_open", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "pwrite"),
        *("register_at_fork", "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "set_blocking"),
        *("setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync", "sysconf", "tcgetpgrp", "ttyname", "uname"),
        *("wait", "wait3", "wait4", "waitid", "WNOHANG", "O_CLOEXEC", "O_DIRECTORY", "O_DIRECT", "O_NOFOLLOW"),
        *("O_NONBLOCK", "O_SYNC"),
    ),
    "signal": (
        *("SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT"),
        *("SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "getitimer", "pause"),
        *("pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigtimedwait", "sigwait"),
    ),
}
"""What these modules have not on Windows with Python 3.11."""


class Lacking(types.ModuleType):
    """A module without some of its names."""

    def __init__(self, module: types.ModuleType, lacks: Sequence[str]):
        """Wrap it."""
        super().__init__(module.__name__)
        self._module, self._lacks = module, lacks

    def __getattr__(self, name: str) -> Any:
        """What it has, unless that is lacking."""
        if name in self._lacks:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


def hide() -> None:
    """Let modules of the package that are imported from now on see no more than Windows has; and none sees /proc."""
    shown = {
        **{name: Lacking(importlib.import_module(name), lacks) for name, lacks in LACKING.items()},
        # That of one process, which holds what it locks.
        "msvcrt": types.SimpleNamespace(locking=lambda file, how, count: None, LK_NBLCK=2),
    }
    usual = builtins.__import__

    def found(name: str, given: Any = None, *rest: Any, **named: Any) -> Any:
        if (given or {}).get("__name__", "").partition(".")[0] == "rlx2_jax":
            if name in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in shown:
                return shown[name]
        return usual(name, given, *rest, **named)

    def opened(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith("/proc/") and asked_by(sys._getframe(1)) == "rlx2_jax":
            raise FileNotFoundError(2, "No such file or directory", arguments[0])

    builtins.__import__ = found  # type: ignore[assignment]
    sys.addaudithook(opened)


def asked_by(frame: types.FrameType | None) -> str:
    """The package that opens a file, with pathlib or without."""
    while frame and frame.f_globals.get("__name__", "").startswith("pathlib"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").partition(".")[0] if frame else ""


def main(workdir: Path, settings: dict[str, Any]) -> None:
    """Import every module, train until the first evaluation, and go on."""
    hide()
    import rlx2_jax

    modules = [module.name for module in pkgutil.walk_packages(rlx2_jax.__path__, "rlx2_jax.")]
    for name in modules:
        if not name.endswith("._native"):  # No module of Python's: it is opened by ctypes.
            importlib.import_module(name)
    config = rlx2_jax.Config.from_dict(settings)

    def stop(rows: Sequence[Any]) -> None:
        if len(rows) == 1:
            signal.raise_signal(signal.SIGTERM)

    first = rlx2_jax.train(config, workdir, on_report=stop)
    rest = rlx2_jax.train(config, workdir, resume=True)
    assert not first.finished and rest.finished
    steps = [result.rows[-1]["env_steps"] for result in (first, rest)]
    print(f"{len(modules)} modules; stopped at {steps[0]}, then trained to {steps[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
