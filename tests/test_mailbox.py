"""The mailbox: what is asked arrives whole or is refused in one clear line, whatever else lies in the folder."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journals import open_folder, plain_user
from sapflow.errors import InputError
from sapflow.telemetry.mailbox import MAX_FILES, MAX_PENDING, MAX_REQUEST_BYTES, Mailbox, Request
from sapflow.telemetry.run_directory import TrainerLock

PRUNE = Request(request_id="p-1", env_id=3, action="prune", slot_id="mid", seed_id="mid-1", asked_at=1.5, by="ada@lab")


@pytest.fixture
def mailbox(tmp_path):
    """Of a run whose trainer is at work."""
    with TrainerLock(tmp_path):
        mailbox = Mailbox(tmp_path)
        mailbox.open()
        yield mailbox


def test_what_is_asked_is_pending_until_it_is_removed(mailbox):
    mailbox.post(PRUNE)
    assert Mailbox(mailbox.run_dir).pending() == [PRUNE]
    mailbox.remove("p-1")
    mailbox.remove("p-1")
    assert mailbox.pending() == []
    assert list(mailbox.folder.iterdir()) == []


def test_nothing_but_a_request_is_removed(mailbox):
    """Names come from a journal, too, which may be a stranger's."""
    plan = mailbox.run_dir / "plan.json"
    plan.touch()
    for name in ("../plan", str(plan.with_suffix("")), "a\0b", "a" * 300):
        mailbox.remove(name)
    assert plan.exists()


def test_the_first_asked_comes_first(mailbox):
    later = Request(request_id="a", env_id=0, action="stop", asked_at=9.0)
    for request in (later, PRUNE):
        mailbox.post(request)
    assert mailbox.pending() == [PRUNE, later]


def test_nothing_is_overwritten(mailbox):
    mailbox.post(PRUNE)
    with pytest.raises(InputError, match="is there already"):
        mailbox.post(Request(request_id="p-1", env_id=0, action="stop"))
    assert mailbox.pending() == [PRUNE]


def test_a_file_system_without_hard_links_will_do(mailbox, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    mailbox.post(PRUNE)
    with pytest.raises(InputError, match="is there already"):
        mailbox.post(PRUNE)
    assert mailbox.pending() == [PRUNE]
    assert [path.name for path in mailbox.folder.iterdir()] == ["p-1.json"]


@pytest.mark.parametrize("request_id", ["", "../p", "a/b", ".hidden", "-", "a" * 65, "a\n", "a.json", "ä", "a\0b"])
def test_a_name_that_is_no_name_is_refused(mailbox, request_id):
    with pytest.raises(InputError, match="request id"):
        mailbox.post(Request(request_id=request_id, env_id=0, action="stop"))
    assert list(mailbox.folder.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "explode"},
        {"slot_id": "x" * 257},
        {"by": "x" * 257},
        {"env_id": "3"},
        {"seed_id": "\ud800"},
        {"slot_id": "\0" * 250, "seed_id": "\0" * 250, "by": "\0" * 250},
    ],
)
def test_what_would_not_be_read_is_not_posted(mailbox, fields):
    request = Request(**({"request_id": "p-1", "env_id": 3, "action": "prune"} | fields))
    with pytest.raises(InputError, match="p-1"):
        mailbox.post(request)
    assert list(mailbox.folder.iterdir()) == []


def test_nobody_is_asked_where_no_trainer_is(tmp_path):
    mailbox = Mailbox(tmp_path)
    mailbox.open()
    with pytest.raises(InputError, match="no trainer is at work"):
        mailbox.post(PRUNE)
    with TrainerLock(tmp_path):
        mailbox.folder.rmdir()
        with pytest.raises(InputError, match="takes no requests"):
            mailbox.post(PRUNE)
    assert mailbox.pending() == []


def test_a_full_mailbox_takes_no_more(mailbox):
    for number in range(MAX_PENDING):
        mailbox.post(Request(request_id=f"r{number}", env_id=0, action="stop"))
    with pytest.raises(InputError, match="is full"):
        mailbox.post(PRUNE)
    assert len(mailbox.pending()) == MAX_PENDING


def test_a_viewer_needs_to_write_that_folder_alone():
    with open_folder() as folder, TrainerLock(folder):
        mailbox = Mailbox(folder)
        mailbox.open()
        with plain_user(), pytest.raises(InputError, match=r"cannot write to .*requests \(Permission denied\): ask"):
            mailbox.post(PRUNE)
        mailbox.folder.chmod(0o777)
        with plain_user():
            mailbox.post(PRUNE)
            assert not os.access(folder, os.W_OK, effective_ids=True)
        assert mailbox.pending() == [PRUNE]


def put(mailbox, name, content):
    (mailbox.folder / name).write_bytes(content)


def plain(**fields):
    return json.dumps({"request_id": "x", "env_id": 0, "action": "stop"} | fields).encode()


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("x.txt", plain(), "odd name"),
        ("x y.json", plain(), "odd name"),
        ("y.json", plain(), "another's name"),
        ("x.json", b"", "malformed"),
        ("x.json", b"\xff\xfe", "malformed"),
        ("x.json", b"[" * 4_000, "malformed"),
        ("x.json", plain(action="erase"), "malformed"),
        ("x.json", plain(env_id=2**70), "malformed"),
        ("x.json", plain(more=1), "malformed"),
        ("x.json", plain(asked_at="now"), "malformed"),
        ("x.json", plain(by="x" * 257), "malformed"),
        ("x.json", b" " * 10 * MAX_REQUEST_BYTES + plain(), "too large"),
    ],
)
def test_a_file_that_is_no_request_is_counted_once_and_stops_nothing(mailbox, name, content, cause):
    put(mailbox, name, content)
    mailbox.post(PRUNE)
    assert mailbox.pending() == [PRUNE]
    assert mailbox.pending() == [PRUNE]
    assert mailbox.refused == {cause: 1}


def test_links_pipes_and_folders_are_not_followed(mailbox, tmp_path):
    (tmp_path / "secret.json").write_bytes(plain(request_id="link"))
    (mailbox.folder / "link.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(mailbox.folder / "pipe.json")
    (mailbox.folder / "folder.json").mkdir()
    assert mailbox.pending() == []
    assert mailbox.refused == {"unreadable": 1, "no file": 2}


def test_of_a_flood_no_more_than_a_bound_is_looked_at(mailbox):
    for number in range(MAX_FILES + 50):
        put(mailbox, f"f{number}.json", b"")
    assert mailbox.pending() == []
    assert mailbox.refused.total() == MAX_FILES


@given(content=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_content_gets_past(tmp_path_factory, content):
    mailbox = Mailbox(tmp_path_factory.mktemp("run"))
    mailbox.open()
    put(mailbox, "x.json", content)
    assert mailbox.pending() == []
    assert mailbox.refused.total() == 1


def test_a_reader_never_sees_half_a_request(mailbox):
    """A thread posts while this one looks."""

    def post():
        for number in range(200):
            mailbox.post(Request(request_id=f"r{number}", env_id=number, action="stop"))
            mailbox.remove(f"r{number}")

    poster = threading.Thread(target=post)
    poster.start()
    reader = Mailbox(mailbox.run_dir)
    while poster.is_alive():
        reader.pending()
    poster.join()
    assert reader.refused == {}
