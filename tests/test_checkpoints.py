"""Checkpoints of tiny trees: which are used, what gives way to an older one, what a full disk leaves. And histories."""

import errno
import json
import os
import resource
import shutil
import subprocess
import threading
from unittest import mock

import numpy as np
import pytest

from rlx2_jax.config import resolve
from rlx2_jax.errors import CheckpointError, FileError
from rlx2_jax.io import checkpoints, files
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.training import workdirs
from tests.conftest import small

TEMPLATE = {"x": np.zeros(3, np.float32)}


def save(workdir, *steps):
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"x": np.full(3, step, np.float32)}, {"made": step})


def restore(workdir, **options):
    """Step, array and record of the checkpoint that is used, and what is said about others."""
    told = []
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        step, state, record = checkpoints.restore(TEMPLATE, told.append, **options)
    np.testing.assert_array_equal(state["x"], np.full(3, step))
    assert record == {"made": step}
    return step, told


def test_arrays_without_entries_are_kept(tmp_path):
    """As some simulators' states have."""
    state = {"x": np.ones(3, np.float32), "none": np.zeros((2, 0), np.int32), "absent": None}
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state, {})
        _, found, _ = checkpoints.restore(state, print)
    assert (found["none"].shape, found["none"].dtype, found["absent"]) == ((2, 0), np.int32, None)
    np.testing.assert_array_equal(found["x"], state["x"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A directory with checkpoints at steps 5 and 9."""
    workdir = tmp_path_factory.mktemp("pair")
    save(workdir, 5, 9)
    return workdir


@pytest.fixture
def workdir(pair, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rename(workdir, step, name):
    (workdir / "checkpoints" / str(step)).rename(workdir / "checkpoints" / name)
    (workdir / "checksums" / f"{step}.json").rename(workdir / "checksums" / f"{name}.json")


def describe(workdir, data):
    """Replace what the newest checkpoint says that it is, with checksums to fit."""
    about, checksums = workdir / "checkpoints" / "9" / checkpoints.ABOUT, workdir / "checksums" / "9.json"
    about.write_bytes(data)
    checksums.write_text(json.dumps(json.loads(checksums.read_text()) | {checkpoints.ABOUT: checkpoints._hash(about)}))


def without(workdir, *names):
    """What the newest checkpoint says that it is, but for some of it."""
    about = json.loads((workdir / "checkpoints" / "9" / checkpoints.ABOUT).read_text())
    return json.dumps({name: value for name, value in about.items() if name not in names}).encode()


def test_a_checkpoint_is_the_one_of_its_step(workdir):
    rename(workdir, 9, "11")
    step, told = restore(workdir)
    assert step == 5
    aside = workdir / "rejected" / "11"
    assert told == [
        f"checkpoint at step 11 is the one of step 9; using the one at step 5, the other is now {aside}.",
    ]
    assert (aside / checkpoints.ABOUT).exists()


def test_an_older_checkpoint_that_does_not_name_its_step_is_used(workdir):
    describe(workdir, without(workdir, "step"))
    assert restore(workdir) == (9, [])


@pytest.mark.parametrize(
    "data",
    [b"null", b"[]", b"3", b'"a"', b"{}", b"", b"\xff\xfe", b"[" * 100_000, b'{"\\u0000": 1}', b'{"..": 1}'],
)
def test_checksums_of_another_kind_are_damage(workdir, data):
    (workdir / "checksums" / "9.json").write_bytes(data)
    step, (told,) = restore(workdir)
    assert step == 5
    assert told.startswith("checkpoint at step 9 ")
    assert " has unreadable checksums; " in told or " is damaged " in told or "unreadable description" in told


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_a_checksum_of_another_kind_is_damage(workdir, value):
    path = workdir / "checksums" / "9.json"
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), value)))
    step, (told,) = restore(workdir)
    assert step == 5
    assert "checkpoint at step 9 is damaged (" in told


@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"a"', b"{}", b"", b"\xff\xfe", b"[" * 100_000])
def test_a_description_of_another_kind_is_damage(workdir, data):
    describe(workdir, data)
    step, (told,) = restore(workdir)
    assert step == 5
    assert "checkpoint at step 9 has an unreadable description; " in told


@pytest.mark.parametrize("name", ["config", "structure", "record"])
@pytest.mark.parametrize("value", ["missing", None, 3, "a"])
def test_a_description_that_lacks_something_is_damage(workdir, name, value):
    about = json.loads(without(workdir, name)) | ({} if value == "missing" else {name: value})
    describe(workdir, json.dumps(about).encode())
    step, (told,) = restore(workdir)
    assert step == 5
    assert "checkpoint at step 9 has an unreadable description; " in told


def test_a_record_that_lacks_something_is_damage(workdir):
    assert restore(workdir, kinds={"made": int}) == (9, [])
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .* has an unreadable description; .*\.$"):
        restore(workdir, kinds={"made": int, "clock": float})


@pytest.mark.parametrize("name", ["²", "٣", "007", "-3", "x", ".DS_Store", "12.orbax-checkpoint-tmp"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_named_as_a_checkpoint_is_none(workdir, name, kind):
    path = workdir / "checkpoints" / name
    path.mkdir() if kind == "folder" else path.write_text("")
    (workdir / "checksums" / f"{name}.json").write_text("{}")
    assert restore(workdir) == (9, [])


@pytest.mark.parametrize("checksums", [True, False])
def test_a_file_in_the_place_of_a_checkpoint_is_set_aside(workdir, checksums):
    (workdir / "checkpoints" / "11").write_text("")
    if checksums:
        shutil.copy(workdir / "checksums" / "9.json", workdir / "checksums" / "11.json")
    step, (told,) = restore(workdir)
    assert step == 9
    assert "checkpoint at step 11 is " in told
    assert (workdir / "rejected" / "11").is_file()


@pytest.mark.parametrize("name", ["checkpoints", "checksums"])
def test_a_file_in_the_place_of_a_folder_is_one_sentence(workdir, name):
    shutil.rmtree(workdir / name)
    (workdir / name).write_text("")
    match = rf"{name} is no folder; put the folder back, or name another workdir\.$"
    with pytest.raises(CheckpointError, match=match):
        restore(workdir)
    with pytest.raises(CheckpointError, match=match), Checkpoints(workdir, {}) as checkpoints:
        checkpoints.forget_incomplete()
    with pytest.raises(CheckpointError, match=match):
        save(workdir, 11)


def test_what_a_system_leaves_among_the_files_is_no_damage(workdir):
    for folder in ("checkpoints", "checkpoints/9", "checkpoints/9/state", "checksums"):
        for name in (".DS_Store", "._x", ".nfs0001", "Thumbs.db"):
            (workdir / folder / name).write_text("")
    assert restore(workdir) == (9, [])
    save(workdir, 11)
    assert restore(workdir)[0] == 11


def test_a_hidden_file_is_not_needed_by_the_checkpoint_it_was_written_beside(workdir):
    hashes = checkpoints._hashes(workdir / "checkpoints" / "9")
    (workdir / "checkpoints" / "9" / "state" / ".nfs0001").write_text("")
    assert (
        checkpoints._hashes(workdir / "checkpoints" / "9")
        == hashes
        == json.loads((workdir / "checksums" / "9.json").read_text())
    )


def test_a_link_to_a_directory_of_checkpoints_is_followed(workdir, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far"
    (workdir / "checkpoints").rename(elsewhere)
    (workdir / "checkpoints").symlink_to(elsewhere)
    rename(workdir, 9, "11")
    assert restore(workdir)[0] == 5
    assert (workdir / "rejected" / "11").is_dir()
    save(workdir, 9)
    assert {path.name for path in elsewhere.iterdir()} == {"5", "9"}


def test_without_checksums_nothing_is_lost_for_good(workdir):
    shutil.rmtree(workdir / "checksums")
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        checkpoints.forget_incomplete()
        assert checkpoints.steps() == []
    assert {path.name for path in (workdir / "rejected").iterdir()} == {"5", "9"}


def test_what_a_killed_save_left_is_removed_by_the_next(workdir):
    left = workdir / "checkpoints" / "11.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "9", left)
    save(workdir, 11)
    assert not left.exists()
    assert restore(workdir)[0] == 11


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a small disk, as root can, or makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size):
        how = f"{'remount,' if place.is_mount() else ''}size={size}"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True)
        if made.returncode:
            pytest.skip("only root can mount a small disk")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True)


def fill(workdir, size):
    """Save one big checkpoint after another until one cannot be; returns what is said, and the steps saved."""
    steps = []
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        for step in range(1, 20):
            try:
                checkpoints.save(step, {"x": np.random.default_rng(step).random(size)}, {"made": step})
            except CheckpointError as error:
                return str(error), steps
            steps.append(step)
    return None


@pytest.mark.parametrize(("capacity", "size"), [("40k", 100), ("40k", 5_000), ("100k", 100), ("200k", 5_000)])
def test_a_full_disk_is_one_sentence_and_leaves_the_last_good_checkpoints(disk, capfd, caplog, capacity, size):
    workdir = disk(capacity)
    said, steps = fill(workdir, size)
    mend = (
        f"then resume: the one at step {steps[-1]} is kept." if steps else "or name another workdir: there is none yet."
    )
    full = "could not be written (No space left on device); free space there"
    assert said == f"checkpoint at step {len(steps) + 1} {full}, {mend}"
    assert not any(type(thread).__module__.startswith("orbax") for thread in threading.enumerate())
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(step) for step in steps[-2:]}
    assert {path.stem for path in (workdir / "checksums").iterdir()} == {str(step) for step in steps[-2:]}
    disk("1m")
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        if steps:
            assert checkpoints.restore({"x": np.zeros(size)}, pytest.fail)[0] == steps[-1]
        checkpoints.save(50, {"x": np.zeros(3)}, {})


def test_a_file_that_may_not_be_so_long_is_as_a_full_disk(workdir, capfd):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with (
            Checkpoints(workdir, {"seed": 1}) as checkpoints,
            pytest.raises(
                CheckpointError, match=r"11 could not be written \(File too large\); free space there, then resume"
            ),
        ):
            checkpoints.save(11, {"x": np.random.default_rng(0).random(5_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"5", "9"}
    assert restore(workdir) == (9, [])


def test_a_directory_that_is_gone_is_not_made_again(tmp_path):
    workdir = tmp_path / "run"
    with Checkpoints(workdir, {"seed": 1}) as checkpoints:
        for step in (5, 9):
            checkpoints.save(step, TEMPLATE, {})
        shutil.rmtree(workdir)
        match = r"11 could not be written \(No such file or directory\); put its directory back, or name"
        with pytest.raises(CheckpointError, match=match):
            checkpoints.save(11, TEMPLATE, {})
    assert not workdir.exists()


def test_checksums_that_cannot_be_written_leave_no_checkpoint_without_any(workdir, monkeypatch):
    def fail(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.files, "write_json", fail)
    with pytest.raises(CheckpointError, match=r"free space there, then resume: the one at step 9 is kept\.$"):
        save(workdir, 11)
    assert restore(workdir) == (9, [])


def test_what_else_keeps_a_checkpoint_from_being_written_is_one_sentence(workdir, monkeypatch):
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", mock.Mock(side_effect=RuntimeError("a\nb")))
    match = r"^checkpoint at step 11 could not be written \(a\); make its directory writable, then resume: the one at"
    with pytest.raises(CheckpointError, match=match):
        save(workdir, 11)


ROWS = [{"env_steps": 10 * k, "return_mean": 0.1 * k, "critic_loss": None} for k in (1, 2, 3)]
LINES = "".join(files.json_line(row) for row in ROWS)
LATER = files.json_line({"env_steps": 40, "return_mean": 9.0})


def rewind(workdir, text, kept, step=35):
    """Rows that a run goes on with where its file holds a text, and what is said of the file."""
    path = workdir / "metrics.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    rows, told = workdirs.rewind(workdir, step, 10, kept)
    assert files.read_json_lines(path, whole=True) == rows
    return rows, told


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        LINES[:-9],
        LINES[9:],
        LINES * 2,
        LATER,
        LINES.replace('"env_steps": 20', '"env_steps": null'),
        LINES.replace("env", "evn"),
        "null\n",
        "[]\n3\n",
        "{" + LINES,
        "\xff\xfe" + LINES,
    ],
)
def test_a_history_that_was_changed_is_put_back_or_refused(tmp_path, text):
    assert rewind(tmp_path, text, ROWS) == (
        ROWS,
        f"{tmp_path / 'metrics.jsonl'} was not as the run had written it; it is put back as it was at step 35",
    )
    assert rewind(tmp_path, LINES.replace("0.2", "0.3"), ROWS)[0] == ROWS
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(
        FileError, match=r"^\S+ (is damaged \(.*\)|has not one row for each .* up to step 35); restore .*\.$"
    ):
        rewind(tmp_path, text, None)


@pytest.mark.parametrize("kept", [ROWS, None])
@pytest.mark.parametrize("more", ["", LATER, LATER[:-9], LATER * 2])
def test_a_history_with_later_rows_goes_back_to_the_step(tmp_path, kept, more):
    assert rewind(tmp_path, LINES + more, kept) == (ROWS, None)


def test_a_history_begins_empty(tmp_path):
    for text in (None, LINES, LATER):
        assert rewind(tmp_path, text, [], 0) == ([], None)
    assert rewind(tmp_path, LINES, None, 9) == ([], None)


def test_a_folder_in_the_place_of_a_history_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    for kept in (ROWS, None):
        with pytest.raises(FileError, match=r"metrics.jsonl is a folder, not a file; .*\.$"):
            rewind(tmp_path, None, kept)


def test_rows_come_back_from_a_checkpoint_as_from_their_file(tmp_path):
    rows = [{"env_steps": 1, "loss": 0.1 + 0.2, "tiny": 5e-324, "none": float("nan"), "much": float("inf")}]
    files.write_json_lines(tmp_path / "metrics.jsonl", rows)
    with Checkpoints(tmp_path, {"seed": 1}) as checkpoints:
        checkpoints.save(1, TEMPLATE, {"rows": files.plain(rows)})
        _, _, record = checkpoints.restore(TEMPLATE, pytest.fail)
    assert record["rows"] == files.read_json_lines(tmp_path / "metrics.jsonl")
    assert record["rows"][0]["none"] is record["rows"][0]["much"] is None


def test_a_replaced_run_keeps_a_link_to_where_its_checkpoints_are(workdir, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far"
    (workdir / "checkpoints").rename(elsewhere)
    (workdir / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "11").symlink_to(tmp_path_factory.mktemp("kept"))
    files.write_json(workdir / "config.json", resolve(small()).to_dict())
    workdirs.prepare(workdir, resolve(small()), resume=False, overwrite=True)
    assert (workdir / "checkpoints").is_symlink()
    assert list(elsewhere.iterdir()) == []
    save(workdir, 5)
    assert restore(workdir) == (5, [])
