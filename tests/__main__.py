"""Every check of the project, in the order in which they fail fastest: `python -m tests`."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, NamedTuple


class Check(NamedTuple):
    """One command, and what a person is told of it."""

    what: str
    command: tuple[str, ...]


class Stage(NamedTuple):
    """Checks made side by side: the last one speaks as it goes on, the others once they have ended."""

    minutes: float
    """About, on two quiet cores, with nothing compiled before."""
    checks: tuple[Check, ...]


STAGES = (
    Stage(0.1, (Check("style", ("ruff", "check", ".")),)),
    Stage(0.1, (Check("format", ("ruff", "format", "--check", ".")),)),
    # The types need one core for a minute, at whose end the tests have both.
    Stage(6.5, (Check("types", ("mypy",)), Check("default tests", ("pytest", "--durations=20")))),
    Stage(
        17,
        (Check("slow tests: learning, attacks, hosts, studies", ("pytest", "-m", "slow", "--durations=20")),),
    ),
)

LOOK_SECONDS = 0.1
"""Between two looks at checks that are made side by side."""


def main() -> int:
    """Make all checks until one fails."""
    whole = sum(stage.minutes for stage in STAGES)
    print(f"{len(STAGES)} stages, about {whole:.0f} minutes on two quiet cores:", flush=True)
    for stage in STAGES:
        for check in stage.checks:
            beside = ", side by side" if len(stage.checks) > 1 else ""
            print(
                f"  {check.what}, about {stage.minutes:g} min{beside}: python -m {' '.join(check.command)}", flush=True
            )
    began = time.monotonic()
    for number, stage in enumerate(STAGES, 1):
        names = " and ".join(check.what for check in stage.checks)
        print(f"\n[{number}/{len(STAGES)}, {minutes(began)}] {names}", flush=True)
        try:
            failed = first_failure(stage.checks)
        except KeyboardInterrupt:
            print(f"stopped after {minutes(began)}", flush=True)
            return 128 + signal.SIGINT
        if failed:
            check, status = failed
            print(f"failed after {minutes(began)}: python -m {' '.join(check.command)}", flush=True)
            return status
    print(f"all passed in {minutes(began)}", flush=True)
    return 0


def first_failure(checks: tuple[Check, ...]) -> tuple[Check, int] | None:
    """Make checks side by side; the first that fails, with its exit code, ends the others, and so does a Ctrl-C."""
    with contextlib.ExitStack() as files:
        said: list[IO[bytes] | None] = [*(files.enter_context(tempfile.TemporaryFile()) for _ in checks[1:]), None]
        running = {
            check: (subprocess.Popen([sys.executable, "-m", *check.command], stdout=file, stderr=file), file)
            for check, file in zip(checks, said, strict=True)
        }
        failed = None
        try:
            while running and not failed:
                time.sleep(LOOK_SECONDS)
                ended = next((check for check, (process, _) in running.items() if process.poll() is not None), None)
                if ended is None:
                    continue
                process, file = running.pop(ended)
                if file:
                    file.seek(0)
                    print(f"\n{ended.what}: {file.read().decode().strip()}", flush=True)
                if process.returncode:
                    failed = ended, process.returncode
        finally:
            for process, _ in running.values():
                process.send_signal(signal.SIGINT)
                process.wait()
    return failed


def minutes(began: float) -> str:
    """Time since then, for people."""
    return "{:.0f} min {:02.0f} s".format(*divmod(time.monotonic() - began, 60))


if __name__ == "__main__":
    sys.exit(main())
