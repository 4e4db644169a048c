"""Copies of the repository, of the files that it keeps as they are now."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def kept_files() -> list[str]:
    """Names of the files in the repository."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in told.split("\0") if name and (ROOT / name).is_file()]


def copy_kept_files(place: Path) -> Path:
    """A copy of them in a directory, which is given back; recorded runs and their pictures stay out."""
    for name in kept_files():
        if not name.startswith("experiments/results/"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place
