"""Files, directories and signals as a run and its neighbours use them."""

import importlib
import os
import signal
import stat
import sys
import threading
import types
from unittest import mock

import pytest

from rlx2_jax.errors import FileError, WorkdirError
from rlx2_jax.io import files, lock
from rlx2_jax.training import workdirs
from rlx2_jax.training.signals import StopSignals
from tests.conftest import small


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "kept.json"
    files.write_json(path, {"kept": True})
    with mock.patch.object(os, "fsync", side_effect=OSError("no space")), pytest.raises(OSError, match="no space"):
        files.write_json(path, {"kept": False})
    assert files.read_json(path, None) == {"kept": True}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_reads_as_nothing(tmp_path):
    assert files.read_json(tmp_path / "none.json", 7) == 7
    assert files.read_json_lines(tmp_path / "none.jsonl") == []


def test_a_full_disk_is_one_sentence_and_leaves_the_last_good_files(tmp_path, full):
    whole, lines = tmp_path / "whole.json", tmp_path / "lines.jsonl"
    files.write_json(whole, {"kept": True})
    files.append_json_line(lines, {"kept": True})
    full(30)
    for write, path in ((files.write_json, whole), (files.append_json_line, lines)):
        with pytest.raises(FileError, match=rf"^{path} cannot be written \(.*\); free space there, or .*\.$"):
            write(path, {"kept": "x" * 100})
    assert files.read_json(whole, None) == {"kept": True}
    assert lines.read_bytes() == b'{"kept": true}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "lines.jsonl"}


def test_a_directory_that_is_gone_is_one_sentence(tmp_path):
    for write in (files.write_json, files.append_json_line):
        with pytest.raises(FileError, match=r"cannot be written \(No such file.*put its directory back, or .*\.$"):
            write(tmp_path / "gone" / "file.json", {})


def test_what_is_no_file_is_neither_replaced_nor_read(tmp_path):
    pipe, folder, below = tmp_path / "pipe", tmp_path / "folder", tmp_path / "file" / "below"
    os.mkfifo(pipe)
    folder.mkdir()
    below.parent.write_text("")
    for path, why in ((pipe, "is a device or pipe, not a file"), (folder, "is a folder, not"), (below, "Not a direct")):
        for use in (
            lambda path: files.write_bytes(path, b""),
            lambda path: files.append_json_line(path, {}),
            lambda path: files.read_json(path, None),
            files.read_json_lines,
        ):
            with pytest.raises(FileError, match=rf"{why}.*\.$"):
                use(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "file"}


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "there" / "file.json")
    files.write_json(link, {"a": 1})
    assert link.is_symlink()
    assert files.read_json(tmp_path / "there" / "file.json", None) == {"a": 1}


@pytest.mark.parametrize("data", [b"", b"null", b"3", b"[]", b'"a"', b"{", b"\xff\xfe{}", b"[" * 100_000, b"\x00"])
def test_what_is_no_json_object_is_damaged(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data + b"\n")
    for read in (lambda path: files.read_json(path, None), files.read_json_lines):
        with pytest.raises(FileError, match=r"^.* is damaged \(.*\); restore a copy, or name another place\.$"):
            read(path)


def test_only_a_last_line_may_be_cut_short(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert files.read_json_lines(path) == [{"a": 1}]
    with pytest.raises(FileError, match="damaged"):
        files.read_json_lines(path, whole=True)
    path.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(FileError, match="damaged"):
        files.read_json_lines(path)


def test_who_waits_for_a_directory_is_told_so_at_once(tmp_path):
    said = []
    with lock.hold(tmp_path), pytest.raises(WorkdirError), lock.hold(tmp_path, 0.3, said.append):
        pass
    assert said == [f"workdir {tmp_path} is in use by another process; waiting up to 0.3 s for it"]


def test_without_fcntl_a_directory_is_held_as_windows_can(tmp_path):
    held = set()

    def locking(file, how, count):
        if os.fstat(file).st_ino in held:
            raise PermissionError(13, "Permission denied")
        held.add(os.fstat(file).st_ino)

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    try:
        with mock.patch.dict(sys.modules, {"fcntl": None, "msvcrt": fake}):
            other = importlib.reload(lock)
        with other.hold(tmp_path), pytest.raises(WorkdirError, match="in use"), other.hold(tmp_path, 0):
            pass
        with other.alone(tmp_path / "beside"):
            pass
    finally:
        importlib.reload(lock)


def test_one_process_at_a_time_holds_a_directory(tmp_path):
    with lock.hold(tmp_path), pytest.raises(WorkdirError, match="in use by another process"), lock.hold(tmp_path, 0):
        pass
    with lock.hold(tmp_path, 0):
        pass


def test_a_file_system_without_locks_is_told_so_at_once(tmp_path):
    refuse = mock.Mock(side_effect=OSError(38, "Function not implemented"))
    with mock.patch("fcntl.flock", refuse), pytest.raises(WorkdirError, match="cannot be locked"), lock.hold(tmp_path):
        pass


def test_a_run_keeps_others_out_of_its_directory(tmp_path):
    how = {"resume": False, "overwrite": True}
    with (
        workdirs.held(tmp_path, small(), **how),
        mock.patch.object(lock, "hold", lambda directory, hold=lock.hold: hold(directory, 0.0)),
        pytest.raises(WorkdirError, match="in use by another process"),
        workdirs.held(tmp_path, small(), **how),
    ):
        pass
    with pytest.raises(WorkdirError, match="continued or replaced; leave one out"):
        workdirs.held(tmp_path, small(), resume=True, overwrite=True).__enter__()


def test_a_replacement_that_is_interrupted_leaves_a_run_that_is_still_told_from_none(tmp_path):
    with workdirs.held(tmp_path, small(), resume=False, overwrite=False):
        (tmp_path / "checkpoints" / "400").mkdir(parents=True)
    with mock.patch("shutil.rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        workdirs.prepare(tmp_path, small(gamma=0.9), resume=False, overwrite=True)
    with pytest.raises(WorkdirError, match="holds another run"):
        workdirs.prepare(tmp_path, small(gamma=0.9), resume=False, overwrite=False)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    with workdirs.held(tmp_path, small(), resume=False, overwrite=False):
        pass
    kept = {path.name for path in tmp_path.iterdir()}
    with (
        mock.patch.object(os, "replace", side_effect=KeyboardInterrupt),
        mock.patch.object(type(tmp_path), "unlink"),  # A kill leaves no time to tidy up.
        pytest.raises(KeyboardInterrupt),
    ):
        files.write_json(tmp_path / "summary.json", {})
    assert {path.name for path in tmp_path.iterdir()} > kept
    with workdirs.held(tmp_path, small(), resume=True, overwrite=False):
        assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_first_signal_is_told_of_at_once_in_another_thread_than_the_one_that_computes():
    told, heard = [], threading.Event()

    def say(line):
        told.append((line, threading.current_thread()))
        heard.set()

    with StopSignals(say) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(10)
        os.kill(os.getpid(), signal.SIGHUP)
    ((line, thread),) = told
    assert thread is not threading.main_thread()
    assert line.startswith("SIGTERM heard: what is being computed now is finished, then ")
    assert stop.received == "SIGHUP"
    assert signal.set_wakeup_fd(-1) == -1, "as it was before"


def test_a_lost_connection_asks_for_an_end_unless_it_is_to_be_ignored():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.received == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_name_that_python_could_not_decode_is_refused(tmp_path):
    with (
        pytest.raises(WorkdirError, match=r"set PYTHONUTF8=1, or name another\.$"),
        workdirs.held(tmp_path / "l\udcc3\udca4uf", small(), resume=False, overwrite=False),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_interrupts():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_an_inner_part_was_told_to_stop_by_stops_the_outer_one_too():
    with StopSignals() as outer:
        with StopSignals() as quiet:
            pass
        assert quiet.received is outer.received is None
        with StopSignals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.received == outer.received == "SIGTERM"
