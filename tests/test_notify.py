"""Notifications: an alert reaches a real HTTP endpoint, and no endpoint whatsoever keeps the caller waiting."""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from commands import SAPFLOW, finish
from journals import PATIENCE
from sapflow.control import notify
from sapflow.control.notify import QUEUE_LIMIT, Notifier
from sapflow.errors import InputError
from sapflow.telemetry.events import Alert
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Severity

AT_ONCE = 1.0  # hundreds of calls take a few milliseconds; a service that is waited for takes its whole time limit


def alert(epoch: int = 3, rule: str = "runaway seed") -> Alert:
    return Alert(
        rule=rule, severity=Severity.CRITICAL, slot_id="mid", seed_id="mid-1", blueprint_id="explosive",
        since_epoch=epoch, value=64.0, evidence="ratio 64 > 2", actions=("prune", "notify"),
    )  # fmt: skip


class Endpoint:
    """A service on loopback that answers with `status` once `released` is set; what it got is in `got`."""

    def __init__(self, status: int = 200) -> None:
        self.got: queue.Queue[tuple[str, dict]] = queue.Queue()
        self.released = threading.Event()
        self.released.set()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.got.put((self.path, json.loads(body)))
                endpoint.released.wait(PATIENCE)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@contextmanager
def served(status: int = 200) -> Iterator[Endpoint]:
    endpoint = Endpoint(status)
    try:
        yield endpoint
    finally:
        endpoint.close()


class Outcomes:
    """What was said of each alert, to be waited for."""

    def __init__(self) -> None:
        self.said: queue.Queue[tuple[bool, str]] = queue.Queue()

    def __call__(self, done: bool, detail: str) -> None:
        self.said.put((done, detail))

    def next(self) -> tuple[bool, str]:
        return self.said.get(timeout=PATIENCE)


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


def test_an_alert_reaches_an_endpoint_with_all_that_it_names(outcomes):
    with served() as endpoint:
        notifier = Notifier([endpoint.url])
        notifier.notify(alert(), 2, "run-7", outcomes)
        path, body = endpoint.got.get(timeout=PATIENCE)
        assert outcomes.next() == (True, "sent")
        notifier.close(PATIENCE)
    assert path == "/hook"
    assert (body["title"], body["type"]) == ("Sapflow critical: runaway seed", "failure")
    for word in ("run-7", "env 2", "slot mid", "mid-1", "explosive", "64", "ratio 64 > 2", "epoch 3", "prune"):
        assert word in body["message"]
    assert (notifier.sent, notifier.failed) == (1, 0)


class Heard(list):
    def emit(self, event):
        self.append(event)


def test_an_alert_that_was_cleared_and_is_raised_again_within_an_epoch_is_sent_again():
    heard = Heard()
    with served() as endpoint:
        notifier = Notifier([endpoint.url])
        env = notifier.of_env(EventStream(heard, "run-7", 2))
        for sequence in (5, 9):
            env.notify(3, sequence, alert())
        notifier.close(PATIENCE)
        assert endpoint.got.qsize() == 2
    assert [(event.env_id, event.sequence, event.payload.outcome) for event in heard] == [(2, None, "sent")] * 2


def notify_all(notifier: Notifier, outcomes: Outcomes, count: int) -> float:
    """Seconds that the caller spends on so many alerts."""
    start = time.monotonic()
    for epoch in range(count):
        notifier.notify(alert(epoch), 0, "run", outcomes)
    return time.monotonic() - start


def test_an_endpoint_that_is_down_is_counted_said_and_logged_once(outcomes, caplog):
    with served() as endpoint:
        url = endpoint.url  # of a port at which nobody listens any more
    notifier = Notifier([url])
    assert notify_all(notifier, outcomes, 3) < AT_ONCE
    notifier.close(PATIENCE)
    for _ in range(3):
        done, detail = outcomes.next()
        assert not done
        assert detail.startswith("JSON: ")
    assert (notifier.sent, notifier.failed) == (0, 3)
    assert len(caplog.records) == 1


def test_an_endpoint_that_answers_500_is_said_and_the_others_are_told(outcomes):
    with served(500) as broken, served() as sound:
        notifier = Notifier([broken.url, sound.url])
        assert notify_all(notifier, outcomes, 1) < AT_ONCE
        sound.got.get(timeout=PATIENCE)
        done, detail = outcomes.next()
        notifier.close(PATIENCE)
    assert not done
    assert "500" in detail


def test_an_endpoint_that_hangs_delays_nobody_and_what_finds_no_room_is_said(outcomes):
    with served() as endpoint:
        endpoint.released.clear()
        notifier = Notifier([endpoint.url])
        notifier.notify(alert(epoch=1_000), 0, "run", outcomes)
        endpoint.got.get(timeout=PATIENCE)  # it has it, and does not answer
        assert notify_all(notifier, outcomes, QUEUE_LIMIT + 2) < AT_ONCE
        assert [outcomes.next() for _ in range(2)] == [(False, f"not sent: {QUEUE_LIMIT} alerts wait already")] * 2
        start = time.monotonic()
        notifier.close(0.1)
        assert time.monotonic() - start < 0.1 + AT_ONCE
        ends = [outcomes.next() for _ in range(QUEUE_LIMIT + 1)]
        assert {detail for _, detail in ends} == {"not sent within 0.1 s of the end"}
        assert notifier.failed == QUEUE_LIMIT + 3
        endpoint.released.set()
        notifier._thread.join(PATIENCE)  # what was given up is not said a second time
    assert outcomes.said.empty()


def test_an_endpoint_that_never_answers_costs_its_time_limit_alone(outcomes, monkeypatch):
    monkeypatch.setattr(notify, "SECONDS_TO_ANSWER", 0.2)
    with served() as mute, served() as sound:
        mute.released.clear()
        notifier = Notifier([f"{mute.url}?rto=3600", sound.url])
        notifier.notify(alert(), 0, "run", outcomes)
        sound.got.get(timeout=PATIENCE)
        assert not outcomes.next()[0]
        mute.released.set()
        notifier.close(PATIENCE)


def test_an_outcome_that_raises_does_not_stop_the_alerts_behind_it(outcomes, caplog):
    def failing(done: bool, detail: str) -> None:
        raise RuntimeError("out of cheese")

    with served() as endpoint:
        notifier = Notifier([endpoint.url])
        notifier.notify(alert(1), 0, "run", failing)
        notifier.notify(alert(2), 0, "run", outcomes)
        assert outcomes.next() == (True, "sent")
        notifier.close(PATIENCE)
        notifier.notify(alert(3), 0, "run", failing)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING, logging.ERROR]


def test_after_the_end_nothing_is_sent(outcomes):
    with served() as endpoint:
        notifier = Notifier([endpoint.url])
        notifier.close(PATIENCE)
        notifier.notify(alert(), 0, "run", outcomes)
        assert outcomes.next() == (False, "not sent: the run is over")
        assert endpoint.got.empty()


def test_variables_are_filled_in_quoted_and_never_said(outcomes, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SAPFLOW_TOKEN", "s3cret/with?odd#signs")
    with served(500) as endpoint:
        monkeypatch.setenv("SAPFLOW_URL", endpoint.url)
        notifier = Notifier([endpoint.url + "/${SAPFLOW_TOKEN}", "${SAPFLOW_URL}"])
        notifier.notify(alert(), 0, "run", outcomes)
        paths = [endpoint.got.get(timeout=PATIENCE)[0] for _ in range(2)]
        _, detail = outcomes.next()
        notifier.close(PATIENCE)
    assert paths == ["/hook/s3cret%2Fwith%3Fodd%23signs", "/hook"]
    assert "s3cret" not in detail + caplog.text


def test_a_secret_that_a_service_quotes_is_masked(outcomes, monkeypatch):
    with served() as endpoint:
        _, _, port = endpoint.url.removesuffix("/hook").rpartition(":")  # at which nobody listens any more
    monkeypatch.setenv("SAPFLOW_HOST", "localhost")
    notifier = Notifier([f"json://${{SAPFLOW_HOST}}:{port}/hook"])
    notifier.notify(alert(), 0, "run", outcomes)
    _, detail = outcomes.next()
    notifier.close(PATIENCE)
    assert "***" in detail
    assert "localhost" not in detail


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("json://localhost/${HOME}", ["url 1", "'HOME'", "SAPFLOW_"]),
        ("json://localhost/${SAPFLOW_NOT_SET}", ["url 1", "'SAPFLOW_NOT_SET'", "not set"]),
        ("json://localhost/${}", ["url 1", "''"]),
        ("carrier-pigeon://hidden", ["url 1", "apprise"]),
        ("hidden", ["url 1", "apprise"]),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_quoted(url, words, capfd):
    with pytest.raises(InputError) as refusal:
        Notifier([url])
    for word in words:
        assert word in str(refusal.value)
    assert "hidden" not in str(refusal.value) + "".join(capfd.readouterr())


def test_without_apprise_the_extra_is_named(tmp_path):
    script = (
        "import sys; sys.modules['apprise'] = None\n"
        "from sapflow.errors import InputError\n"
        "from sapflow.control.notify import Notifier\n"
        "try: Notifier(['json://localhost'])\n"
        "except InputError as error: print(error)"
    )
    done = finish((SAPFLOW[0], "-c", script), tmp_path)
    assert done.stdout == "a rule that notifies needs packages that are not installed: pip install 'sapflow[notify]'\n"
    assert done.stderr == ""
