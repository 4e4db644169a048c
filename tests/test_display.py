"""What a person sees: as much as there is room for, and nothing that ends a run."""

import io
import itertools
import os
import re

import pytest

from rlx2_jax.errors import RlxError
from rlx2_jax.io.streams import Stream
from rlx2_jax.training.display import COLUMNS, Display, fitting

ROW = {
    "env_steps": 1_000_000,
    "return_mean": -1234.56,
    "return_std": 789.1,
    "train_return": 12345.6,
    "critic_loss": 123.456,
    "q_mean": -123.45,
    "actor_sparsity": 0.98,
    "critic_sparsity": 0.95,
    "links_grown": 12_345,
    "replay_size": 1_000_000,
    "policy_distance": float("nan"),
    "n_step": 3,
    "steps_per_second": 12345.6,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, width):
    """What a terminal of a width gets."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with Display(2_000_000) as display:
        display.row(ROW)
        display.advance(1_000_000, "12,345 steps/s  return -1234  sparsity 98%/95%")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_a_narrow_terminal_loses_columns_not_digits(width, monkeypatch):
    lines = shown(monkeypatch, width)
    assert all(len(line.rstrip()) <= width for line in lines)
    title, values = [line for line in lines if "env steps" in line or "±" in line]
    assert "1,000,000" in values and "-1234.6 ± 789.1" in values
    kept = [column for column in COLUMNS if column.title in title]
    assert len(values.split()) >= len(kept)
    assert not any("…" in line for line in lines), "nothing is cut"
    if width >= 200:
        assert kept == list(COLUMNS)


def test_less_room_never_shows_more():
    shown_at = [set(fitting(width)) for width in range(20, 200)]
    assert all(a <= b for a, b in itertools.pairwise(shown_at))
    assert fitting(None) == COLUMNS == fitting(1000)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_status_has_whole_parts_alone(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stderr", Terminal())
    status = "12,345 steps/s  return 950  sparsity 98%/95%"
    display = Display(100)
    display.advance(50, status)
    found = display._bar.tasks[0].fields["status"]
    assert found == "" or status == found or status.startswith(found + "  ")
    assert (found == status) == (width == 200) or width == 120


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_a_display_that_nobody_reads_says_nothing_and_ends_nothing(error, monkeypatch):
    class Gone(Terminal):
        def write(self, text):
            raise error(5, "Input/output error")

        flush = write

    monkeypatch.setattr("sys.stderr", Gone())
    with Display(100) as display:
        display.say("hello")
        display.row(ROW)
        display.advance(100, "done")
        display.say("still there")


def test_a_reader_that_ends_loses_what_is_written_and_a_full_disk_is_told_once():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        Stream(pipe, BrokenPipeError).write("x" * 100_000)
        pipe = Stream(pipe, BrokenPipeError)
        pipe.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    with open("/dev/full", "w") as file:
        full = Stream(file, BrokenPipeError)
        full.write("x")
        with pytest.raises(RlxError, match=r"cannot be written \(No space left on device\)"):
            full.flush()
        full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
