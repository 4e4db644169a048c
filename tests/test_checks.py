"""The command that makes every check."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CHECKS = """
import sys
import tests.__main__ as checks
checks.STAGES = (checks.Stage(1, (checks.Check("sleep", ("sleeper",)),)),)
sys.exit(checks.main())
"""

SLEEPER = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("asleep:", os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_stop_is_told_of_in_a_line_and_leaves_no_check_running(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    with subprocess.Popen(
        [sys.executable, "-c", CHECKS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        begun = next(line for line in process.stdout if line.startswith("asleep:"))
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate()
    assert process.returncode == 130 and errors == ""
    assert said.splitlines()[-1].startswith("stopped after 0 min ")
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.split()[1]), 0)
