"""Loggers: real ones, without a network; one's own; and what becomes of a run whose logger fails."""

import dataclasses
import json
import re
import socket
import sqlite3
import struct
import sys
import types
import typing

import pytest

from rlx2_jax.config import registry, resolve
from rlx2_jax.errors import ConfigError, FileError
from rlx2_jax.io import files
from rlx2_jax.sweeps import plans, sweep
from rlx2_jax.training import loggers, train, workdirs
from rlx2_jax.training.loggers import Loggers, Run
from tests.conftest import ROOT, launch_here, small

TRAINING = ROOT / "docs" / "training.md"

ROWS = [{"env_steps": 400 * k, "return_mean": k / 3, "actor_snr": float("nan")} for k in (1, 2, 3)]
SEEN = [{"env_steps": row["env_steps"], "return_mean": row["return_mean"]} for row in ROWS]
"""What loggers are given of the rows: numbers that are finite."""


class Noted:
    """Notes what it is told; `all` has every one that was made."""

    all: typing.ClassVar[list] = []

    def __init__(self, run):
        self.run, self.calls = run, []
        Noted.all.append(self)

    def log(self, row, step):
        self.calls.append((step, dict(row)))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


@pytest.fixture(autouse=True)
def _nothing_noted():
    Noted.all.clear()


OWN = f"{__name__}:Noted"


def failing(method):
    """A logger of which one method fails."""

    def fail(self, *arguments):
        raise ConnectionError("the network is gone.\nTraceback")

    return type("Failing", (Noted,), {method: fail})


FAILING = {method: failing(method) for method in ("__init__", "log", "flush", "close")}
at_init, at_log, at_flush, at_close = FAILING.values()


def logged(directory, logger, say=print, start=0, rows=ROWS):
    """Rows that are logged from a step on, as a run does."""
    going = Loggers(Run.of(resolve(small(logger=logger)), directory, start, say))
    for row in rows:
        if row["env_steps"] > start:
            going.log(row, row["env_steps"])
    going.close()


def test_an_own_logger_is_told_of_its_run_and_gets_every_row(tmp_path):
    train(small(logger=f"{OWN},tensorboard"), tmp_path / "run", show_progress=False)
    (noted,) = Noted.all
    assert (noted.run.name, noted.run.group, noted.run.step) == ("run", None, 0)
    assert noted.run.directory == tmp_path / "run"
    rows = files.read_json_lines(tmp_path / "run" / "metrics.jsonl")
    finite = [{name: value for name, value in row.items() if value is not None} for row in rows]
    given = [call for call in noted.calls if isinstance(call, tuple)]
    assert json.loads(json.dumps(given)) == json.loads(json.dumps([[row["env_steps"], row] for row in finite]))
    assert noted.calls[1::2] == ["flush"] * len(rows)
    assert noted.calls[-1] == "close"
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_runs_of_a_sweep_have_a_logger_each_grouped_by_the_sweep(tmp_path):
    few = {"total_steps": 400, "eval_every": 200, "checkpoint_every": 200, "warmup_steps": 200, "n_step_delay": 0}
    configs = plans.product(small(logger=OWN, **few), seeds=[0, 1])
    done = sweep(configs, tmp_path / "many", show_progress=False)
    assert done.finished
    assert [noted.run.name for noted in Noted.all] == [run.name for run in done.plan.runs]
    assert {noted.run.group for noted in Noted.all} == {"many"}
    for noted, run in zip(Noted.all, done.plan.runs, strict=True):
        assert [call[0] for call in noted.calls if isinstance(call, tuple)] == [200, 400]
        assert noted.run.config.seed == run.config.seed
        assert noted.calls[-1] == "close"
        assert not (tmp_path / "many" / "runs" / run.name / "tensorboard").exists()


@pytest.mark.parametrize("method", FAILING)
def test_a_logger_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, method):
    said = []
    logged(tmp_path, f"{__name__}:at_{method.strip('_')},{OWN}", said.append)
    (sentence,) = said
    assert "failed: ConnectionError (the network is gone); the run goes on without it" in sentence
    assert [call[1] for call in Noted.all[-1].calls if isinstance(call, tuple)] == SEEN
    assert Noted.all[-1].calls[-1] == "close"


def test_a_run_outlives_its_logger(tmp_path, capfd):
    done = train(small(logger=f"{__name__}:at_log"), tmp_path)
    assert done.finished
    assert capfd.readouterr().err.count("the run goes on without it") == 1
    assert len(files.read_json_lines(tmp_path / "metrics.jsonl")) == 3


def test_without_loggers_there_is_the_history_alone(tmp_path):
    logged(tmp_path, "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", loggers.EXTRAS)
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_made(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    for launcher, arguments in (("train.py", []), ("train.py", ["--workdir=run"]), ("sweep.py", ["--dry_run"])):
        done = launch_here(launcher, "--env=probe/action", f"--logger=tensorboard,{name}", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"logger={name} cannot be imported" in done.stderr
        assert f"pip install 'rlx2-jax[{name}]'" in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("logger", "sentence"),
    {
        "tensorbord": "unknown logger 'tensorbord'; valid: tensorboard, ",
        "none,": "unknown logger 'none,'; valid: tensorboard, ",
        "nowhere:at_all": "nowhere:at_all cannot be imported: ModuleNotFoundError",
        f"{__name__}:ROWS": "is of type list; name a class or function",
    }.items(),
)
def test_a_logger_that_there_is_not_is_one_sentence(tmp_path, logger, sentence):
    with pytest.raises(ConfigError) as told:
        train(small(logger=logger), tmp_path / "run", show_progress=False)
    assert sentence in str(told.value)
    assert str(told.value).endswith(".")
    assert not (tmp_path / "run").exists()


def test_a_logger_says_how_a_run_is_shown_not_what_it_is(tmp_path):
    one, other = (resolve(small(logger=name)) for name in ("tensorboard", "none"))
    assert workdirs.identity(one) == workdirs.identity(other)
    workdirs.prepare(tmp_path, one, resume=False, overwrite=False)
    assert workdirs.resumed(tmp_path, {"logger": "none"}) == dataclasses.replace(one, logger="none")
    with pytest.raises(ConfigError, match=r"sweep\.logger: it says how"):
        plans.product(small(), fields={"logger": ["none", "tensorboard"]})


def test_a_run_that_is_replaced_leaves_nothing_at_its_services(tmp_path):
    config = resolve(small())
    workdirs.prepare(tmp_path, config, resume=False, overwrite=False)
    (tmp_path / "wandb" / "offline-run-20260101_000000-0a1b2c3d").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-20260101_000000-0a1b2c3d")
    (tmp_path / "wandb" / "mine.txt").write_text("mine")
    for service in loggers.EXTRAS:
        loggers.Kept(Run.of(config, tmp_path, 0, print), service).reach(400)
    workdirs.prepare(tmp_path, config, resume=False, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "wandb"}
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", ["{}", '{"id": 3, "env_steps": 0}', '{"id": "a", "env_steps": "0"}', "["])
def test_what_was_kept_of_a_service_and_is_damaged_is_refused(tmp_path, content):
    (tmp_path / "wandb.json").write_text(content)
    with pytest.raises(FileError, match=r"wandb\.json"):
        loggers.Kept(Run.of(resolve(small()), tmp_path, 0, print), "wandb")
    assert (tmp_path / "wandb.json").read_text() == content


@pytest.fixture
def nobody_listens(monkeypatch):
    """Where whatever asks for the network would arrive; that nothing did is checked at the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("WANDB_BASE_URL", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, address)
        yield
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def members(tmp_path, logger):
    """Two runs of a sweep in one process; the first is resumed at step 400, and makes the second evaluation again."""
    one, two = (tmp_path / "many" / "runs" / name for name in ("one", "two"))
    said = []
    for directory in (one, two):
        workdirs.prepare(directory, resolve(small()), resume=False, overwrite=False)
    files.write_json(tmp_path / "many" / workdirs.PLAN, {})
    going = [Loggers(Run.of(resolve(small(logger=logger)), directory, 0, said.append)) for directory in (one, two)]
    for row in ROWS[:2]:
        for each in going:
            each.log(row, row["env_steps"])
    for each in going:
        each.close()
    logged(one, logger, said.append, start=400)
    assert not [sentence for sentence in said if "failed" in sentence]
    return one, two


def wandb_records(path):
    """Records of a `.wandb` file: after 7 bytes of head, a log in LevelDB's format of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # Whole, or the last of its parts.
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_weights_and_biases_offline_holds_the_rows_once_and_asks_for_no_network(tmp_path, monkeypatch, nobody_listens):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    one, two = members(tmp_path, "wandb")
    wandb.teardown()
    found = {}
    for directory in (one, two):
        for path in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
            records = list(wandb_records(path))
            (run,) = {(r.run.run_id, r.run.display_name, r.run.run_group) for r in records if r.HasField("run")}
            assert ("*", "env_steps") in {(r.metric.glob_name, r.metric.step_metric) for r in records}
            for record in records:
                if record.HasField("history"):
                    items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                    found.setdefault(run, []).append({k: v for k, v in items.items() if not k.startswith("_")})
    kept = [json.loads((directory / "wandb.json").read_text())["id"] for directory in (one, two)]
    assert kept[0] != kept[1]
    assert found == {(kept[0], "one", "many"): SEEN, (kept[1], "two", "many"): SEEN[:2]}
    assert [files.read_json(directory / "wandb.json", {})["env_steps"] for directory in (one, two)] == [1200, 800]
    made = {path.name for path in (one / "wandb").iterdir()}
    workdirs.prepare(one, resolve(small()), resume=False, overwrite=True)
    assert made and not (one / "wandb").exists(), "all of it is a run's own, and goes when that is replaced"


def test_trackio_stores_the_rows_once_on_this_machine_and_asks_for_no_network(tmp_path, monkeypatch, nobody_listens):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "database"))
    pytest.importorskip("trackio")
    one, two = members(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "database" / "rlx2_jax.db") as database:
        stored = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = dict(database.execute("select run_name, config from configs").fetchall())
    for directory, rows in ((one, SEEN), (two, SEEN[:2])):
        name = f"{directory.name}-{files.read_json(directory / 'trackio.json', {})['id']}"
        assert [json.loads(metrics) for run, _, metrics in stored if run == name] == rows
        assert [step for run, step, _ in stored if run == name] == [row["env_steps"] for row in rows]
        assert json.loads(configs[name])["actor_sparsity"] == 0.9
    assert len(stored) == 5


def test_the_documents_example_of_ones_own_logger_tells_of_each_new_best(tmp_path, monkeypatch):
    page = types.ModuleType("page_with_a_logger")
    exec(re.search(r"```python\n(class BestOfRun.*?)```", TRAINING.read_text(), re.DOTALL).group(1), vars(page))
    monkeypatch.setitem(sys.modules, page.__name__, page)
    said = []
    rows = [{"env_steps": 1000 * k, "return_mean": mean} for k, mean in enumerate((3.0, 2.0, 9.0), 1)]
    logged(tmp_path, f"{page.__name__}:BestOfRun", said.append, rows=rows)
    assert said == ["best so far at step 1,000: 3", "best so far at step 3,000: 9"]


def test_every_logger_of_the_package_is_found_by_its_name():
    assert registry.LOGGERS[0] == small().logger
    for name in (name for name in registry.LOGGERS if name not in (registry.NO_LOGGER, *loggers.EXTRAS)):
        assert callable(loggers.find(name))
