"""Every check of the project, in the order in which they fail fastest: `python -m tests`."""

import subprocess
import sys
import time
from typing import NamedTuple


class Check(NamedTuple):
    """One command, and what a person is told of it."""

    what: str
    minutes: float
    """About, on two quiet cores, with nothing compiled before."""
    command: tuple[str, ...]


CHECKS = (
    Check("style", 0.1, ("ruff", "check", ".")),
    Check("format", 0.1, ("ruff", "format", "--check", ".")),
    Check("types", 1, ("mypy",)),
    Check("default tests", 7, ("pytest",)),
    Check("slow tests: learning, attacks, hosts, studies", 19, ("pytest", "-m", "slow", "--dist", "worksteal")),
)


def main() -> int:
    """Run all checks until one fails."""
    whole = sum(check.minutes for check in CHECKS)
    print(f"{len(CHECKS)} checks, about {whole:.0f} minutes on two quiet cores:", flush=True)
    for check in CHECKS:
        print(f"  {check.what}, about {check.minutes:g} min: python -m {' '.join(check.command)}", flush=True)
    began = time.monotonic()
    for number, check in enumerate(CHECKS, 1):
        print(f"\n[{number}/{len(CHECKS)}, {minutes(began)}] {check.what}", flush=True)
        status = subprocess.run([sys.executable, "-m", *check.command]).returncode
        if status:
            print(f"failed after {minutes(began)}: python -m {' '.join(check.command)}", flush=True)
            return status
    print(f"all passed in {minutes(began)}", flush=True)
    return 0


def minutes(began: float) -> str:
    """Time since then, for people."""
    return "{:.0f} min {:02.0f} s".format(*divmod(time.monotonic() - began, 60))


if __name__ == "__main__":
    sys.exit(main())
