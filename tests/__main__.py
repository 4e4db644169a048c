"""Every check of the project, in the order in which they fail fastest: `python -m tests`."""

import subprocess
import sys

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest",),
    ("pytest", "-m", "slow", "-vv"),
)


def main() -> int:
    for check in CHECKS:
        print(f"$ python -m {' '.join(check)}", flush=True)
        status = subprocess.run([sys.executable, "-m", *check]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
