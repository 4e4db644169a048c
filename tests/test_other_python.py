"""A Python of another minor version, with the newest packages that the bounds allow; skipped where there is none.

Python 3.11 has jax 0.10, the last one for it; 3.12 has what is newest. Whichever the tests run with, these few are made
with the other: imports, a run that resumes bit for bit, masked and packed, sparse training, exported programs.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.copies import copy_kept_files

OTHER = "3.11" if sys.version_info >= (3, 12) else "3.12"

TESTS = (
    "test_public.py",
    "test_export_program.py",
    "test_run.py::test_a_stopped_and_resumed_run_is_bit_identical_to_an_uninterrupted_one",
    "test_packed.py::test_a_packed_run_resumes_exactly_and_its_policy_is_dense",
    "test_sparse.py::test_scan_and_shard_map_and_a_plain_loop_agree",
    "test_topology.py::test_drop_and_grow_repeats_the_published_event",
)


def interpreters():
    """Places where one may be."""
    yield shutil.which(f"python{OTHER}")
    home = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(home.glob(f"versions/{OTHER}.*/bin/python{OTHER}"))


def new_environment(place):
    """Its Python, of the other version; None where there is none that makes environments."""
    for python in filter(None, interpreters()):
        if subprocess.run([python, "-m", "venv", place], capture_output=True).returncode == 0:
            return place / "bin" / "python"
    return None


@pytest.mark.slow
def test_the_other_python_with_the_newest_packages(tmp_path, record_property):
    python = new_environment(tmp_path / "venv")
    if python is None:
        pytest.skip(f"no Python {OTHER}")
    source = copy_kept_files(tmp_path / "source")
    # Another XLA may not know the flags of this one.
    quiet = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    install = [python, "-m", "pip", "install", "-q", "--no-compile", "-e", source, "hypothesis", "pytest"]
    done = subprocess.run(install, capture_output=True, text=True, env=quiet)
    if done.returncode:
        assert "ResolutionImpossible" not in done.stderr, done.stderr
        pytest.skip(f"packages for Python {OTHER} cannot be installed here: {done.stderr[-300:]}")
    told = "import jax, sys; print(f'Python {sys.version.split()[0]}, jax {jax.__version__}')"
    command = [python, "-m", "pytest", "-o", "addopts=-q", "-m", "not slow", *(f"tests/{name}" for name in TESTS)]
    environment = quiet | {"RLX2_TEST_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    which = subprocess.run([python, "-c", told], check=True, capture_output=True, text=True).stdout.strip()
    record_property("told", f"{which}: {done.stdout.strip().splitlines()[-1]}")
