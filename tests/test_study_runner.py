"""Studies: what is made, in which order, and what a stop, a death or a refusal leaves."""

import shutil
import signal
from unittest import mock

import numpy as np
import pytest
from paper import STUDIES, plan, runner, store

from rlx2_jax import policies
from rlx2_jax.errors import ConfigError, DivergedError, RlxError, WorkdirError
from rlx2_jax.io import files, lock
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from rlx2_jax.sweeps import plans, workers
from rlx2_jax.training.signals import StopSignals

both_ways = pytest.mark.parametrize("laboratory", ["processes", "shard_map"], indirect=True)
"""With clones made by workers, and in this process."""


@pytest.fixture
def laboratory(request, monkeypatch, tmp_path):
    """A place to run studies in, where runs and clones take no time; what was made is told in order.

    Sweeps in a directory named in `broken` make nothing: a worker dies, or (True) it is asked to stop.
    """
    made, broken = [], {}

    def finish(directory, config, rows, **more):
        directory.mkdir(parents=True)
        files.write_json(directory / "config.json", config.to_dict())
        files.write_json_lines(directory / "metrics.jsonl", rows)
        about = policies.describe(config, 5, 1.0) | {"made": len(made)}
        # No two runs leave the same masks, which are as many links as their configuration makes.
        trees = {}
        for name, own in structure(config, 4, 4).items():
            lead = (2,) if name == "critic" else ()
            trees[name] = {}
            for i, ((rows, columns), count) in enumerate(zip(own.shapes, own.links, strict=True)):
                row = np.roll(np.arange(rows * columns) < count, len(made)).reshape(rows, columns)
                trees[name][f"Dense_{i}"] = {"kernel": np.broadcast_to(row, (*lead, rows, columns))}
        tickets.save(directory / "masks.npz", trees, trees, about)
        zeros = lambda *shape: np.zeros(shape, np.float32)
        shapes = structure(config, 4, 4)["actor"].shapes
        params = {f"Dense_{i}": {"kernel": zeros(*shape), "bias": zeros(shape[1])} for i, shape in enumerate(shapes)}
        policies.save(directory / "policy.npz", params, about)
        files.write_json(directory / "summary.json", {"finished": True, **more})

    def sweep(configs, workdir, *, on_table, **options):
        dead = next((name for name in broken if name in str(workdir)), None)
        if dead is not None:
            if broken[dead]:
                signal.raise_signal(signal.SIGTERM)
            return mock.Mock(finished=False)
        held = plans.read(workdir)
        plan = plans.lay_out(configs, parallel="processes", held=held)
        workdir.mkdir(parents=True, exist_ok=True)
        plans.write(workdir, plan)
        lines = [{"run": run.name, "finished": True, "diverged": False} for run in plan.runs]
        for run in plan.runs:
            directory = workdir / "runs" / run.name
            if not directory.exists():
                made.append((run.config.method, run.config.topology, bool(run.config.ticket), run.config.seed))
                finish(directory, run.config, [{"env_steps": 5, "return_mean": 1.0, "return_std": 0.0}])
        files.write_json(workdir / "sweep.json", lines)
        on_table(plan, lines)
        return mock.Mock(finished=True)

    def clone(config, teacher, workdir, *, overwrite, say):
        made.append(("clone", config.topology, bool(config.ticket), config.seed))
        if config.seed == 7:
            raise DivergedError("diverged.")
        rows = [{"updates": 5, "return_mean": 1.0, "return_std": 0.0}]
        finish(workdir, config, rows, teacher=teacher.about["made"])

    def work(tasks, count, stop, ended):
        for task in tasks:

            def say(line):
                if stop.received:
                    raise KeyboardInterrupt

            code, error, teacher = 0, "", policies.load(task.teacher)
            try:
                runner.cloning.clone(task.config, teacher, task.workdir, overwrite=True, say=say)
            except RlxError as problem:
                code = workers.DIVERGED if isinstance(problem, DivergedError) else workers.REFUSED
                error = str(problem).rstrip(".")
            except KeyboardInterrupt:
                code = -signal.SIGTERM
            ended(workers.End(task, code, error))
            if stop.received:
                return

    monkeypatch.setattr(runner, "sweep", sweep)
    monkeypatch.setattr(plans, "build", lambda configs: None)
    monkeypatch.setattr(runner.cloning, "clone", clone)
    monkeypatch.setattr(runner.workers, "work", work)
    parallel = getattr(request, "param", "processes")
    return runner.Place(tmp_path / "results" / "tickets", tmp_path / "work", parallel), made, broken


CLONES = ("clone-dynamic", "clone-random", "clone-winning", "clone-winning-release")


def conducted(laboratory, seeds, arms=(), study="tickets", **settings):
    """Conduct a study; what was made by it, and what it said."""
    place, made, _ = laboratory
    del made[:]
    said = []
    wanted = plan.runs(STUDIES[study], ["td3/ant"], seeds, {"total_steps": 60_000, **settings}, arms)
    assert runner.run_study(STUDIES[study], wanted, place, said.append)
    return list(made), said


def test_a_signal_while_the_last_runs_of_a_row_finish_keeps_the_next_row_back(laboratory, monkeypatch):
    place, made, _ = laboratory
    sweep = runner.sweep

    def late(*arguments, **options):
        with StopSignals():
            signal.raise_signal(signal.SIGINT)
            return sweep(*arguments, **options)

    monkeypatch.setattr(runner, "sweep", late)
    wanted = plan.runs(STUDIES["table2"], ["td3/ant", "td3/hopper"], [0], {"total_steps": 60_000}, ["dense", "rlx2"])
    assert not runner.run_study(STUDIES["table2"], wanted, place, print)
    assert len(made) == len(store.read(place.directory)) == 2


@pytest.mark.parametrize(("stopped", "made_of_the_second"), [(False, 4), (True, 0)])
def test_a_worker_that_dies_keeps_no_other_row_and_a_stop_keeps_all(laboratory, stopped, made_of_the_second):
    place, made, broken = laboratory
    broken["td3-ant"] = stopped
    wanted = plan.runs(STUDIES["table2"], ["td3/ant", "td3/hopper"], [0, 1], {"total_steps": 60_000}, ["dense", "rlx2"])
    assert not runner.run_study(STUDIES["table2"], wanted, place, print)
    assert len(made) == len(store.read(place.directory)) == made_of_the_second


def test_what_a_stopped_command_has_left_is_not_made_by_one_that_needs_nothing(laboratory):
    place, *_ = laboratory
    assert len(conducted(laboratory, [0], ["rlx2"], "table2")[0]) == 1
    (home,) = place.workdir.glob("*/stage-0")
    left = plan.runs(STUDIES["table2"], ["td3/ant"], range(5), {"total_steps": 60_000}, ["rigl"])
    held = plans.read(home)
    configs = [run.config for run in (*held.runs, *left)]
    plans.write(home, plans.lay_out(configs, parallel="processes", held=held))
    assert conducted(laboratory, [0], ["rlx2"], "table2") == ([], [])
    assert len(store.read(place.directory)) == 1
    assert len(conducted(laboratory, [1], ["rlx2"], "table2")[0]) == 6


def test_a_search_that_gets_no_further_ends(laboratory):
    place, _, broken = laboratory
    broken["td3-ant"] = False
    wanted = plan.runs(STUDIES["frontier"], ["td3/ant"], range(5), {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["frontier"], wanted, place, print)


@both_ways
def test_stages_come_in_order_and_nothing_is_made_twice_when_a_study_grows(laboratory):
    place, *_ = laboratory
    made, said = conducted(laboratory, [0])
    assert sorted(said) == [f"{arm}, seed 0: return 1.0 at its end" for arm in CLONES]
    kinds = [run[:3] for run in made]
    assert sorted(kinds[:3]) == [("dense", "fixed", False), ("rlx2", "fixed", False), ("rlx2", "gradient", False)]
    assert kinds[3:5] == [("rlx2", "fixed", True)] * 2
    assert len(made) == len({run["arm"] for run in store.read(place.directory)}) == 9
    assert conducted(laboratory, [0]) == ([], [])
    more, _ = conducted(laboratory, [0, 1])
    assert len(more) == 9
    assert {run[-1] for run in more} == {1}
    # Another length is another place; a part of what is there, or its order, is no reason to complain.
    assert len(conducted(laboratory, [0], total_steps=90_000)[0]) == 9
    assert conducted(laboratory, [1], ["dynamic", "winning"]) == ([], [])
    assert len(store.read(place.directory)) == 27


@both_ways
def test_a_ticket_is_that_of_its_own_arm_and_seed_and_so_is_a_teacher(laboratory):
    place, *_ = laboratory
    conducted(laboratory, [0, 1])
    (home,) = place.workdir.iterdir()
    configs = {path.parent: files.read_json(path, {}) for path in home.glob("stage-0/runs/*/config.json")}

    def found(seed, **settings):
        (run,) = (p for p, c in configs.items() if c["seed"] == seed and all(c[k] == v for k, v in settings.items()))
        return run

    lines = {(run["arm"], run["seed"]): run["config"] for run in store.read(place.directory)}
    for seed in (0, 1):
        dynamic, clone = found(seed, topology="gradient"), home / "clones" / f"clone-dynamic-seed{seed}"
        for arm, source in {"winning": dynamic, "clone-winning": clone}.items():
            for name in (arm, f"{arm}-release"):
                assert lines[name, seed]["ticket"] == tickets.digest(source)
        taught = policies.load(found(seed, method="dense") / "policy.npz").about["made"]
        for clone in home.glob(f"clones/*-seed{seed}"):
            assert files.read_json(clone / "summary.json", {})["teacher"] == taught


def test_a_search_looks_at_its_own_runs_alone(laboratory):
    short, _ = conducted(laboratory, range(5), study="frontier")
    longer, _ = conducted(laboratory, range(5), study="frontier", total_steps=90_000)
    assert len(longer) == len(short) > 5


def test_a_study_is_extended_where_its_runs_files_are_gone(laboratory):
    place, *_ = laboratory
    conducted(laboratory, [0])
    shutil.rmtree(place.workdir)
    assert conducted(laboratory, [0]) == ([], [])
    made, _ = conducted(laboratory, [0, 1])
    assert {run[-1] for run in made} == {1}
    assert len(made) == 9


@both_ways
def test_a_clone_that_diverges_is_recorded_and_what_needs_it_is_left_out(laboratory):
    place, *_ = laboratory
    _, said = conducted(laboratory, [7])
    assert any("clone-winning, seed 7, is left out: clone-dynamic of that seed did not finish" in line for line in said)
    kept = {run["arm"]: run for run in store.read(place.directory)}
    assert kept["clone-dynamic"]["diverged"]
    assert "clone-winning" not in kept
    assert not kept["winning"]["diverged"]
    # It would diverge again.
    assert conducted(laboratory, [7])[0] == []


@both_ways
def test_a_clone_that_is_asked_to_stop_stops_all_and_is_made_again(laboratory, monkeypatch):
    place, made, _ = laboratory
    clone = runner.cloning.clone

    def stopped(config, teacher, workdir, *, overwrite, say):
        signal.raise_signal(signal.SIGTERM)
        say("update 5: return 1")
        raise AssertionError("it went on")

    monkeypatch.setattr(runner.cloning, "clone", stopped)
    said = []
    wanted = plan.runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert not [line for line in said if "makes it again" in line]
    assert len(made) == len(store.read(place.directory)) == 5
    monkeypatch.setattr(runner.cloning, "clone", clone)
    assert [run[0] for run in conducted(laboratory, [0])[0]] == ["clone"] * 4


@both_ways
def test_a_clone_that_cannot_be_made_says_why_and_keeps_nothing_else(laboratory, monkeypatch):
    place, *_ = laboratory
    monkeypatch.setattr(runner.cloning, "clone", mock.Mock(side_effect=ConfigError("it cannot be; mend it.")))
    said = []
    wanted = plan.runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert "clone-random, seed 0: it cannot be; mend it" in said
    assert "clone-dynamic, seed 0: it cannot be; mend it" in said
    assert not [line for line in said if "makes it again" in line]
    assert len(store.read(place.directory)) == 5


def test_a_clone_whose_worker_died_is_made_again_and_keeps_no_other(laboratory, monkeypatch):
    place, *_ = laboratory
    work = runner.workers.work

    def deadly(tasks, count, stop, ended):
        for task in tasks:
            if "dynamic" in task.name:
                ended(workers.End(task, -signal.SIGKILL, ""))
            else:
                work([task], count, stop, ended)

    monkeypatch.setattr(runner.workers, "work", deadly)
    said = []
    wanted = plan.runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert "clone-dynamic, seed 0: its worker was ended by SIGKILL; the same command makes it again" in said
    assert {run["arm"] for run in store.read(place.directory)} & set(CLONES) == {"clone-random"}
    monkeypatch.setattr(runner.workers, "work", work)
    assert [run[0] for run in conducted(laboratory, [0])[0]] == ["clone"] * 3


@both_ways
def test_two_studies_do_not_make_the_same_runs_at_once(laboratory, monkeypatch):
    place, made, _ = laboratory
    conducted(laboratory, [0])
    del made[:]
    (row,) = place.workdir.iterdir()
    hold = lock.hold
    monkeypatch.setattr(lock, "hold", lambda directory: hold(directory, 0.0))
    with hold(row), pytest.raises(WorkdirError, match="in use by another process"):
        conducted(laboratory, [0, 1])
    assert not made


def test_a_runs_record_is_gathered_from_its_files_without_training(laboratory):
    place, made, _ = laboratory
    conducted(laboratory, [0])
    shutil.rmtree(place.directory)
    del made[:]
    runner.gather(plan.runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000}), place)
    assert len(store.read(place.directory)) == 9
    assert not made
