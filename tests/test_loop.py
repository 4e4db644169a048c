"""The host loop: the order of what happens, which real runs hide, and its clock."""

import itertools

import numpy as np
import pytest

from rlx2_jax.config import resolve
from rlx2_jax.errors import DivergedError
from rlx2_jax.training import loop
from tests.conftest import small


class Told:
    """An executor that trains nothing and tells what it is asked for; asked to stop amid one of these."""

    def __init__(self, ask=None, diverges=None):
        self.clock, self.told, self.rates = loop.Clock(), [], []
        self.ask, self.diverges, self.asked = ask, diverges, ask == "start"

    def tell(self, what):
        self.told.append(f"{what} {self.clock.steps}")
        self.asked |= self.told[-1] == self.ask

    def advance(self):
        self.tell("advance from")
        return np.asarray(self.clock.steps != self.diverges)

    def examine(self, finite):
        if not finite:
            raise DivergedError("diverged.")

    def updates(self):
        return 2 * self.clock.steps

    def evaluate(self, rates):
        self.rates.append(rates)
        self.tell("evaluate")

    def checkpoint(self):
        self.tell("checkpoint")

    def stopping(self):
        return self.asked

    def finish(self, done):
        self.tell("done" if done else "stopped")

    def go(self, **lengths):
        return loop.go(self, self.clock, resolve(small(total_steps=1200, chunk_steps=200, **lengths)))


WHOLE = [
    *("advance from 0", "advance from 200", "evaluate 400", "advance from 400", "checkpoint 600"),
    *("advance from 600", "evaluate 800", "advance from 800", "advance from 1000", "evaluate 1200", "checkpoint 1200"),
    *("checkpoint 1200", "done 1200"),
]


def test_what_is_due_at_the_same_step_happens_in_one_order():
    executor = Told()
    assert executor.go(eval_every=400, checkpoint_every=600)
    assert executor.told == WHOLE


def test_a_checkpoint_is_due_where_a_chunk_passes_a_multiple_of_its_interval():
    executor = Told()
    executor.go(eval_every=1200, checkpoint_every=500)
    assert [what for what in executor.told if "checkpoint" in what] == [
        *("checkpoint 600", "checkpoint 1000"),
        "checkpoint 1200",
    ]


@pytest.mark.parametrize(
    ("ask", "last"),
    [
        ("start", 0),
        ("advance from 200", 400),
        ("evaluate 400", 400),
        ("advance from 400", 600),
        ("checkpoint 600", 600),
    ],
)
def test_who_is_asked_to_stop_ends_what_is_due_saves_and_advances_no_more(ask, last):
    executor = Told(ask)
    assert not executor.go(eval_every=400, checkpoint_every=600)
    due = list(itertools.takewhile(lambda what: what != f"advance from {last}", WHOLE))
    assert executor.told == [*due, f"checkpoint {last}", f"stopped {last}"]


@pytest.mark.parametrize("ask", ["advance from 1000", "evaluate 1200", "checkpoint 1200"])
def test_who_is_asked_to_stop_at_the_end_is_done(ask):
    executor = Told(ask)
    assert executor.go(eval_every=400, checkpoint_every=600)
    assert executor.told == WHOLE


def test_after_a_step_that_is_not_sound_nothing_is_evaluated_or_saved():
    executor = Told(diverges=200)
    with pytest.raises(DivergedError):
        executor.go(eval_every=400, checkpoint_every=400)
    assert executor.told == ["advance from 0", "advance from 200"]
    assert executor.clock.steps == 400, "the step that it tells of"


def test_a_clock_counts_chunks_alone_as_training_and_goes_on_where_it_was_saved(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(Told):
        def advance(self):
            now[0] += 4 if self.clock.steps else 1
            return super().advance()

        def evaluate(self, rates):
            super().evaluate(rates)
            with self.clock.evaluation():
                now[0] += 10

    first = Slow("evaluate 400")
    first.go(eval_every=200)
    assert first.clock.seconds() == {"training_seconds": 5, "wall_seconds": 25}
    assert first.rates == [(200, 400), (50, 100)]
    second = Slow()
    second.clock.resume(400, first.clock.seconds() | {"rows": []})
    second.go(eval_every=400)
    assert second.rates == [(50, 100), (50, 100)]
    assert (second.clock.training, second.clock.evaluating, second.clock.since_start()) == (16, 20, 36)
    assert second.clock.seconds() == {"training_seconds": 21, "wall_seconds": 61}
    assert second.clock.columns(second.rates[0]) == {
        "steps_per_second": 50,
        "updates_per_second": 100,
        "wall_seconds": 61,
    }
