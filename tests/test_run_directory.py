"""The run directory from outside: real locks in real processes, and mount tables as Linux writes them."""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path, PurePosixPath

import pytest

from journals import PATIENCE, finished_run, open_folder, plain_user, python
from sapflow.errors import RunDirectoryError
from sapflow.telemetry import run_directory
from sapflow.telemetry.events import RunCompleted
from sapflow.telemetry.keeping import Keeping
from sapflow.telemetry.run_directory import JOURNAL_NAME, LOCK_NAME, TrainerLock, create, newest, trainer_is_alive
from sapflow.telemetry.source import Source


def test_create_makes_the_directory_and_its_parents(tmp_path):
    assert create(tmp_path / "runs" / "first").is_dir()


def test_create_takes_an_empty_directory(tmp_path):
    assert create(tmp_path) == tmp_path


def test_create_refuses_what_is_taken_and_leaves_it_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"not empty: choose another"):
        create(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_create_says_why_it_cannot(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"cannot make the run directory .* \(.*\): choose another"):
        create(tmp_path / name)


@pytest.mark.parametrize(("name", "run_id"), [(os.fsdecode(b"odd\xff"), "odd\ufffd"), (".", "here")])
def test_a_loop_s_run_is_kept_under_a_name_whatever_its_directory_is_called(tmp_path, monkeypatch, name, run_id):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    keeping = Keeping(Path(name), "unkept")
    keeping.run.emit(RunCompleted(completed_envs=1))
    keeping.close()
    with Source(Path(name)) as source:
        assert [event.run_id for event in source.read()] == [run_id]


def dated(path: Path, seconds: int) -> None:
    path.touch()
    os.utime(path, (seconds, seconds))


def test_newest_is_the_run_whose_journal_or_wal_changed_last(tmp_path):
    for name, seconds in [("a", 100), ("b", 300), ("c", 200)]:
        (tmp_path / name).mkdir()
        dated(tmp_path / name / JOURNAL_NAME, seconds)
    (tmp_path / "no-run").mkdir()
    assert newest(tmp_path) == tmp_path / "b"
    dated(tmp_path / "a" / f"{JOURNAL_NAME}-wal", 400)
    assert newest(tmp_path) == tmp_path / "a"


def test_newest_finds_a_run_that_a_journal_wrote(tmp_path):
    assert newest(finished_run(tmp_path / "run").parent) == tmp_path / "run"


@pytest.mark.parametrize("name", [".", "missing"])
def test_newest_says_that_there_is_none(tmp_path, name):
    with pytest.raises(RunDirectoryError, match=r"there is no run under"):
        newest(tmp_path / name)


def test_trainer_is_alive_while_it_holds_the_lock(tmp_path):
    assert not trainer_is_alive(tmp_path)
    assert not trainer_is_alive(tmp_path / "missing")
    with TrainerLock(tmp_path):
        assert trainer_is_alive(tmp_path)
    assert not trainer_is_alive(tmp_path)


def test_probing_changes_nothing(tmp_path):
    trainer_is_alive(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from sapflow.telemetry.run_directory import TrainerLock

with TrainerLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_trainer_is_refused_until_sigkill_frees_the_first(tmp_path):
    with python(HOLDER, tmp_path) as trainer:
        assert trainer.stdout.readline() == "held\n"
        assert trainer_is_alive(tmp_path)
        with (
            pytest.raises(RunDirectoryError, match=r"another trainer runs in .*: choose another"),
            TrainerLock(tmp_path),
        ):
            pass
        assert trainer_is_alive(tmp_path)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait(PATIENCE)
    assert not trainer_is_alive(tmp_path)
    with TrainerLock(tmp_path):
        assert trainer_is_alive(tmp_path)


def test_a_readers_probe_does_not_keep_a_trainer_out(tmp_path, monkeypatch):
    (tmp_path / LOCK_NAME).touch()
    with contextlib.ExitStack() as probe:
        fcntl.flock(probe.enter_context((tmp_path / LOCK_NAME).open("rb")), fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: probe.close())  # the probe ends during the trainer's first pause
        with TrainerLock(tmp_path):
            assert trainer_is_alive(tmp_path)


def test_another_readers_probe_is_no_trainer(tmp_path):
    (tmp_path / LOCK_NAME).touch()
    with (tmp_path / LOCK_NAME).open("rb") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        assert not trainer_is_alive(tmp_path)


def test_lock_in_a_directory_that_cannot_be_written():
    with open_folder() as folder:
        folder.chmod(0o555)
        with (
            plain_user(),
            pytest.raises(RunDirectoryError, match=r"cannot write to the run directory"),
            TrainerLock(folder),
        ):
            pass


def test_a_reader_without_write_permission_sees_the_trainer():
    with open_folder() as folder, TrainerLock(folder):
        folder.chmod(0o555)
        with plain_user():
            assert trainer_is_alive(folder)


def test_a_lock_file_that_cannot_be_read_is_said(tmp_path):
    with open_folder() as folder, TrainerLock(folder):
        (folder / LOCK_NAME).chmod(0)
        with plain_user(), pytest.raises(RunDirectoryError, match=r"check its permissions"):
            trainer_is_alive(folder)


MOUNTINFO = r"""
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:40 / /data rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /data/scratch rw,relatime shared:10 master:3 - xfs /dev/sdb rw
32 27 0:42 / /mnt/my\040share rw - cifs //server/share rw
33 27 0:43 / /mnt/tab\011\134slash rw - fuse.sshfs me@host: rw
34 27 0:44 / /over rw - lustre mgs:/fs rw
35 34 0:45 / /over rw - tmpfs tmpfs rw
36 27 0:46 / /under rw - tmpfs tmpfs rw
37 36 0:47 / /under rw - 9p share rw
""".lstrip("\n")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/runs", None),
        ("/data/runs/1", "nfs4 at /data"),
        ("/data", "nfs4 at /data"),
        ("/database/runs", None),
        ("/data/scratch/runs", None),
        ("/mnt/my share/runs", "cifs at /mnt/my share"),
        ("/mnt/my", None),
        ("/mnt/tab\t\\slash/x", "fuse.sshfs at /mnt/tab\t\\slash"),
        ("/over/runs", None),
        ("/under/runs", "9p at /under"),
    ],
)
def test_network_mount(path, expected):
    assert run_directory.network_mount(MOUNTINFO, PurePosixPath(path)) == expected


def test_network_mount_without_any_mount():
    assert run_directory.network_mount("", PurePosixPath("/x")) is None


def test_network_file_system_follows_links_to_where_the_files_are(tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / {real} rw - ceph mon:/ rw\n")
    monkeypatch.setattr(run_directory, "MOUNT_TABLE", table)
    assert run_directory.network_file_system(tmp_path / "link" / "run") == f"ceph at {real}"
    assert run_directory.network_file_system(tmp_path) is None
    assert run_directory.network_warning(tmp_path) == ""


def test_network_file_system_where_there_is_no_mount_table(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "MOUNT_TABLE", tmp_path / "missing")
    assert run_directory.network_file_system(tmp_path) is None


@pytest.mark.skipif(not run_directory.MOUNT_TABLE.exists(), reason="this system has no mount table to read")
def test_the_mount_table_of_this_machine_is_understood():
    assert run_directory.network_file_system(Path("/proc")) is None
