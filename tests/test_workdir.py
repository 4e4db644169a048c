"""Whose a directory is: what a run takes, leaves and removes, and what it finds there that is not as it was left."""

import errno
import json
import re
import shutil
from unittest import mock

import pytest

from rlx2_jax.config import resolve
from rlx2_jax.errors import FileError, WorkdirError
from rlx2_jax.io import files
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.sweeps import plans, sweep
from rlx2_jax.training import train, workdirs
from rlx2_jax.training.loggers import Run
from rlx2_jax.training.loggers.tensorboard import TensorBoard
from tests.conftest import small

WAYS = [{"resume": way == "resume", "overwrite": way == "overwrite"} for way in ("begin", "resume", "overwrite")]
"""In which a run begins."""


def tree(directory):
    """Everything under a directory, with its contents."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def write(directory, contents):
    for name, text in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def begun(directory, **changes):
    """A directory that a run has begun in."""
    workdirs.prepare(directory, resolve(small(**changes)), resume=False, overwrite=False)
    return directory


FOREIGN = {
    "configuration of another project": {"config.json": '{"agent": "td3", "env": "ant", "method": "x", "host": "a"}'},
    "configuration without our fields": {"config.json": '{"port": 8080}'},
    "configuration of other types": {"config.json": '{"agent": "td3", "env": "ant", "method": 3}'},
    "empty configuration": {"config.json": "{}"},
    "list": {"config.json": "[]"},
    "text": {"config.json": "port = 8080"},
    "folder": {"config.json/a": "1"},
    "checkpoints": {"checkpoints/model.pt": "weights"},
    "numbered checkpoints": {"checkpoints/400/model.pt": "weights"},
    "events": {"tensorboard/events.out.tfevents.1": "events"},
    "picture": {"curve.png": "picture"},
    "rows": {"metrics.jsonl": "{}"},
    "summary": {"summary.json": "{}"},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("way", WAYS, ids=["begin", "resume", "overwrite"])
def test_what_is_somebody_elses_is_refused_and_stays(tmp_path, kind, way):
    write(tmp_path, FOREIGN[kind])
    before = tree(tmp_path)
    with pytest.raises(WorkdirError, match=r"name another --workdir\.$") as refused:
        workdirs.held(tmp_path, resolve(small()), **way).__enter__()
    assert "--overwrite" not in str(refused.value)
    assert tree(tmp_path) == before, "not even a lock"


def test_only_what_a_run_made_is_replaced(tmp_path):
    held = begun(tmp_path)
    mine = {"metrics.jsonl": "", "summary.json": "{}", "curve.png": "", "checkpoints/400/state/a": ""}
    mine |= {"checkpoints/800.orbax-checkpoint-tmp-1/a": "", "checksums/400.json": "", "rejected/200/a": ""}
    mine |= {"checksums/.800.json.12.tmp": "", "tensorboard/events.out.tfevents.1": "", ".summary.json.12.tmp": ""}
    other = {"notes.txt": "a", "checkpoints/model.pt": "b", "checkpoints/best/model.pt": "c", ".curve.png.old.tmp": "d"}
    write(held, mine | other)
    workdirs.prepare(held, resolve(small(gamma=0.9)), resume=False, overwrite=True)
    found = tree(held)
    assert json.loads(found.pop("config.json"))["gamma"] == 0.9
    assert {name: data.decode() for name, data in found.items() if data is not None} == other
    assert {name for name, data in found.items() if data is None} == {"checkpoints", "checkpoints/best"}


def test_a_link_to_checkpoints_stays_and_where_it_leads_loses_the_runs_own(tmp_path):
    held, there = begun(tmp_path / "run"), tmp_path / "there"
    write(there, {"400/state": "", "model.pt": "weights"})
    (held / "checkpoints").symlink_to(there)
    workdirs.prepare(held, resolve(small(gamma=0.9)), resume=False, overwrite=True)
    assert (held / "checkpoints").is_symlink()
    assert list(tree(there)) == ["model.pt"]


@pytest.mark.parametrize("way", WAYS, ids=["begin", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "curve.png", "checkpoints", "tensorboard"])
def test_a_folder_in_the_place_of_a_file_is_told_and_the_other_way_round(tmp_path, name, way):
    held = begun(tmp_path)
    write(held, {f"{name}/a": ""} if "." in name else {name: ""})
    with pytest.raises(FileError, match=rf"{name} is (a folder, not a file|no folder); move it, or .*\.$"):
        workdirs.prepare(held, resolve(small()), **way)
    assert (held / name).exists()


def test_who_asks_to_go_on_is_not_told_to_replace(tmp_path):
    held = begun(tmp_path)
    with pytest.raises(WorkdirError, match=r"another run \(gamma=0.99 not 0.9\); name another --workdir\.$"):
        workdirs.prepare(held, resolve(small(gamma=0.9)), resume=True, overwrite=False)


def test_a_sweep_is_no_run_and_a_run_no_sweep(tmp_path):
    sweep, run = tmp_path / "sweep", begun(tmp_path / "run")
    sweep.mkdir()
    plans.write(sweep, plans.lay_out(plans.product(small())))
    for way in WAYS:
        with pytest.raises(WorkdirError, match=r"holds a sweep, no single run; name another --workdir\.$"):
            workdirs.prepare(sweep, resolve(small()), **way)
    with pytest.raises(WorkdirError, match=r"holds a single run, no sweep; name another --workdir\.$"):
        plans.read(run)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    write(tmp_path, {"file": "a"})
    for use in (workdirs.owned, plans.read):
        with pytest.raises(WorkdirError, match=r"file is no folder; name another --workdir\.$"):
            use(tmp_path / "file")


VALUES = {
    "agent": 3,
    "hidden": [16, "a"],
    "gamma": "0.9",
    "seed": 1.5,
    "num_envs": True,
    "reset_moments": 1,
    "n_step": [],
    "ticket": {},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_configuration_with_a_value_of_another_kind_is_no_run(tmp_path, name):
    held = begun(tmp_path)
    values = json.loads((held / "config.json").read_text()) | {name: VALUES[name]}
    (held / "config.json").write_text(json.dumps(values))
    for use in (workdirs.read_config, lambda held: workdirs.resumed(held, {})):
        with pytest.raises(WorkdirError, match=rf"holds no run \({name}=.*\); name the directory of one\.$"):
            use(held)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe{}", b"{", None])
def test_a_configuration_that_is_damaged_is_one_sentence(tmp_path, data):
    held = begun(tmp_path)
    (held / "config.json").unlink()
    (held / "config.json").mkdir() if data is None else (held / "config.json").write_bytes(data)
    with pytest.raises(WorkdirError, match=r"config.json is .*; name the directory of a run\.$"):
        workdirs.read_config(held)


ROWS = (
    *("{}", "[1]", "3", '{"env_steps": 1}', '{"env_steps": "1", "return_mean": 2}'),
    *('{"env_steps": 1, "return_mean": null}', '{"env_steps": 1, "return_mean": 2, "q_mean": []}'),
)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_another_kind_are_damaged(tmp_path, row):
    write(tmp_path, {"metrics.jsonl": '{"env_steps": 1, "return_mean": 2, "q_mean": null}\n' + row + "\n"})
    with pytest.raises(FileError, match=r"metrics.jsonl is damaged \(.*\); restore a copy, or make its run again\.$"):
        workdirs.read_rows(tmp_path)


def spoil_plan(values, *keys):
    """A plan with one value replaced, or left out if it is a key of the plan itself."""
    *path, last, new = keys
    part = values
    for key in path:
        part = part[key]
    part[last] = new
    return values


SPOILT: list[tuple] = [
    ("runs", []),
    ("runs", {}),
    ("runs", {"a": {"gamma": "x"}}),
    ("batches", None),
    ("batches", [{}]),
    ("devices", 0),
    ("devices", "1"),
    ("compilations", 3),
    ("fields", ["colour"]),
    ("parallel", "foo"),
    ("batches", 0, "rows", "3"),
    ("batches", 0, "runs", ["another"]),
    ("batches", 0, "name", "../a"),
]


@pytest.mark.parametrize("keys", SPOILT, ids=str)
def test_a_plan_that_is_not_as_it_was_left_is_damaged(tmp_path, keys):
    values = json.loads(json.dumps(plans.lay_out(plans.product(small())).to_dict()))
    write(tmp_path, {"plan.json": json.dumps(spoil_plan(values, *keys))})
    with pytest.raises(FileError, match=r"plan.json is damaged \(.*\); restore a copy, or name another --workdir\.$"):
        plans.read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"a": "b"}', '{"a": null}'])
def test_a_note_of_runs_that_diverged_may_be_damaged(tmp_path, text):
    write(tmp_path, {"diverged.json": text, "done.json": f'{{"diverged": {text}}}'})
    for name, within in (("diverged.json", None), ("done.json", "diverged")):
        with pytest.raises(FileError, match=rf"{name} is damaged \(.*another --workdir\.$"):
            plans.read_diverged(tmp_path / name, within)
    assert plans.read_diverged(tmp_path / "none.json") == {}


@pytest.mark.parametrize("name", plans.MADE)
def test_a_sweep_does_not_replace_what_is_somebody_elses(tmp_path, name):
    write(tmp_path, {name: "a"})
    with pytest.raises(WorkdirError, match=rf"holds {name}, which no sweep has left there; name another --workdir\.$"):
        plans.read(tmp_path)


def test_a_full_disk_ends_tensorboards_file_in_one_sentence(tmp_path, full):
    events = TensorBoard(Run.of(resolve(small()), tmp_path, 0, print))
    full(60)
    events.log({"return_mean": 1.0}, 1)
    with pytest.raises(FileError, match=r"tensorboard cannot be written \(File too large\); free space there, or .*"):
        events.flush()
    assert events._writer._py_recordio_writer._writer.closed, "nothing is tried again at the end"
    del events


def test_a_workdir_that_goes_away_while_a_run_goes_on_ends_it_in_one_sentence(tmp_path):
    """Nothing is made in its place."""
    workdir = tmp_path / "run"
    config = small(eval_every=600, checkpoint_every=200)
    with pytest.raises(FileError) as told:
        train(config, workdir, show_progress=False, on_report=lambda rows: shutil.rmtree(workdir))
    assert re.fullmatch(
        rf"{workdir} cannot be written \(No such file or directory\); put its directory back, or name another place; "
        r"the checkpoint at step 400 is where that directory is now, if anywhere\.",
        str(told.value),
    )
    assert not workdir.exists()


@pytest.mark.parametrize(("name", "step"), [("curve.png", 1200), ("tensorboard", 800), ("masks.npz", 1200)])
def test_a_disk_that_is_full_at_any_write_ends_a_run_in_one_sentence(tmp_path, name, step):
    """The disk is full at this file alone: the last checkpoint is kept, and no other is tried."""
    error = OSError(errno.ENOSPC, "No space left on device")
    write, append = files.write_bytes, files.append_json_line

    def fail(write):
        def writing(path, *rest):
            with files.writing(path):
                if path.name == name and len(saved) >= 2:
                    raise error
            return write(path, *rest)

        return writing

    saved = []

    def save(self, step, *rest, save=Checkpoints.save):
        save(self, step, *rest)
        saved.append(step)

    def flush(self, flush=TensorBoard.flush):
        self._do(mock.Mock(side_effect=error)) if name == "tensorboard" and len(saved) >= 2 else flush(self)

    with (
        mock.patch.object(files, "write_bytes", fail(write)),
        mock.patch.object(files, "append_json_line", fail(append)),
        mock.patch.object(TensorBoard, "flush", flush),
        mock.patch.object(Checkpoints, "save", save),
        pytest.raises(FileError) as told,
    ):
        train(small(eval_every=600, checkpoint_every=400), tmp_path, show_progress=False)
    assert re.fullmatch(
        rf"{tmp_path / name} cannot be written \(No space left on device\); free space there, or name another place; "
        rf"the checkpoint at step {step:,} is kept\.",
        str(told.value),
    )
    assert saved[-1] == step


@pytest.mark.parametrize("fault", ["removed", "full"])
def test_a_sweep_that_cannot_write_any_more_ends_in_one_sentence(tmp_path, fault):
    workdir, error = tmp_path / "sweep", OSError(errno.ENOSPC, "No space left on device")

    def listen(plan, lines):
        if lines[0]["env_steps"]:
            with files.writing(workdir / "sweep.csv"):
                if fault == "full":
                    raise error
            shutil.rmtree(workdir)

    configs = plans.product(small(eval_every=600, checkpoint_every=400))
    with pytest.raises(FileError) as told:
        sweep(configs, workdir, show_progress=False, on_table=listen)
    why, left = {
        "removed": ("No such file or directory", "where that directory is now, if anywhere"),
        "full": ("No space left on device", "kept"),
    }[fault]
    kept = f"of batch-0, the checkpoint at step 400 is {left}"
    assert re.fullmatch(rf"{workdir}\S+ cannot be written \({why}\); [^;]*; {kept}\.", str(told.value))
    assert workdir.exists() == (fault == "full")


def test_a_sweep_of_processes_that_cannot_write_its_table_says_that_the_runs_are_kept(tmp_path):
    def listen(plan, lines):
        (tmp_path / "sweep.csv").unlink()
        (tmp_path / "sweep.csv").mkdir()

    with pytest.raises(FileError) as told:
        sweep(plans.product(small()), tmp_path, parallel="processes", show_progress=False, on_table=listen)
    end = "the runs keep their checkpoints, and the same command continues them"
    assert re.fullmatch(rf"{tmp_path}/sweep.csv is a folder, [^;]*; [^;]*; {end}\.", str(told.value))
