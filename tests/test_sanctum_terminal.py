"""Sanctum in a real pseudo-terminal: whatever ends or stops it, the terminal is left as it was."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import SAPFLOW, Terminal, wait_until
from sanctum_events import demo_run
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.mailbox import Mailbox
from sapflow.telemetry.run_directory import TrainerLock

# A shell in miniature with job control: starts Sanctum as a job of its own on this terminal, says when it stops, and
# takes it to the foreground again when it is told to; so Ctrl-Z and `fg` are what they are to a person.
SHELL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
modes = termios.tcgetattr(0)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        break
    same = termios.tcgetattr(0) == modes
    print("stopped, modes", "as before" if same else "changed", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGCONT)
print("ended with", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    journal = Journal(run_dir)
    for event in demo_run(completed=True):
        journal.emit(event)
    journal.close()
    return run_dir


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[Path]:
    """A run whose trainer is at work and takes requests, as far as anybody can see."""
    with TrainerLock(tmp_path):
        journal = Journal(tmp_path)
        for event in demo_run():
            journal.emit(event)
        journal.close()
        Mailbox(tmp_path).open()
        yield tmp_path


def resize(terminal: Terminal, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.killpg(os.tcgetpgrp(terminal._ours), signal.SIGWINCH)


def fresh(terminal: Terminal) -> None:
    """What is waited for from here on has to come anew."""
    terminal.output = ""


def test_every_screen_a_resize_a_stop_and_the_end_leave_the_terminal_as_it_was(run_dir: Path) -> None:
    with Terminal((sys.executable, "-c", SHELL, *SAPFLOW, "sanctum", str(run_dir)), run_dir) as terminal:
        terminal.wait_for("env 03")
        for rows, columns in ((24, 80), (60, 200), (10, 40), (30, 100)):
            fresh(terminal)
            resize(terminal, rows, columns)
            terminal.wait_for("4 envs")
        for keys, words in (
            ("\r", "EXPLODING"),  # the env's own screen
            ("\x1b", "4 envs  worst first"),
            ("e", "growth"),  # the kinds that the log can be narrowed to
            ("\x1b", "4 envs  worst first"),
            ("a", "2 open"),
            ("\x1b", "4 envs  worst first"),
            ("?", "healthy gradient flow"),
            ("\x1b", "4 envs  worst first"),
            ("s", "4 envs  by env"),
            ("T", "theme: light"),
            ("?", "healthy gradient flow"),  # upon which Ctrl-Z stops it, too
        ):
            fresh(terminal)
            terminal.type(keys)
            terminal.wait_for(words)
        whole = terminal.output
        terminal.type("\x1a")  # Ctrl-Z
        terminal.wait_for("stopped, modes as before")
        assert terminal.output.rfind("\x1b[?1049l") > terminal.output.rfind("\x1b[?1049h")
        fresh(terminal)
        terminal.type("fg\r\n")
        terminal.wait_for("healthy gradient flow")
        whole += terminal.output
        fresh(terminal)
        terminal.type("\x1b")
        terminal.wait_for("4 envs  by env")
        terminal.type("q")
        terminal.wait_for("ended with 0")
        assert terminal.wait() == 0
        terminal.output = whole + terminal.output
        terminal.assert_left_clean()


def test_the_screens_of_a_live_run_leave_the_terminal_as_it_was(live_run: Path) -> None:
    with Terminal((*SAPFLOW, "sanctum", str(live_run)), live_run) as terminal:
        terminal.wait_for("env 03")
        begun = terminal.output
        for keys, words in (
            ("\r", "EXPLODING"),  # the env's own screen
            ("\r", "spread of the passes"),  # the seed's
            ("t", "epoch 14 of 40"),  # the time bar
            ("c", "validation loss"),  # the comparison
            ("x", "Stop env 03?"),  # the question before a request
        ):
            fresh(terminal)
            terminal.type(keys)
            terminal.wait_for(words)
        terminal.type("nq")  # closes the question, then Sanctum
        assert terminal.wait() == 0
        terminal.output = begun + terminal.output
        terminal.assert_left_clean()


@pytest.mark.parametrize(
    ("opens", "words", "leaves"),
    [("", "env 03", "q"), ("?", "healthy gradient flow", "\x03"), ("", "env 03", "\x11")],
)
def test_keys_that_leave_leave_the_terminal_as_it_was(run_dir: Path, opens: str, words: str, leaves: str) -> None:
    with Terminal((*SAPFLOW, "sanctum", str(run_dir)), run_dir) as terminal:
        terminal.wait_for("env 03")
        terminal.type(opens)
        terminal.wait_for(words)
        terminal.type(leaves)
        assert terminal.wait() == 0
        terminal.assert_left_clean()


@pytest.mark.parametrize("closed", [True, False])
def test_a_lost_terminal_ends_sanctum(run_dir: Path, closed: bool) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        (*SAPFLOW, "sanctum", str(run_dir)), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = b""
        while b"env 03" not in shown:
            shown += os.read(ours, 65_536)
        if closed:  # and nobody says so: the terminal does not control the process
            os.close(ours)
        else:  # as a closed window or a broken ssh does it, while nobody reads what is drawn
            os.write(ours, b"v" * 200)
            process.send_signal(signal.SIGHUP)
        wait_until(lambda: process.poll() is not None, "the end of a Sanctum without a terminal")
    finally:
        process.kill()
        process.wait()


def test_no_color_is_heeded(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Terminal((*SAPFLOW, "sanctum", str(run_dir)), run_dir) as terminal:
        terminal.wait_for("env 03")
        terminal.wait_for("q quit")
        for code in re.findall(r"\x1b\[([0-9;]*)m", terminal.output):
            for ground in ("38;2;", "48;2;"):
                if ground in code:
                    red, green, blue = code.split(ground)[1].split(";")[:3]
                    assert red == green == blue
        terminal.type("q")
        assert terminal.wait() == 0


@pytest.mark.parametrize("named", ["LC_ALL", "LANG"])
def test_a_terminal_without_utf8_gets_ascii(run_dir: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    for name in ("LC_ALL", "LANG", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(named, "C")  # with which Python writes UTF-8 all the same
    with Terminal((*SAPFLOW, "sanctum", str(run_dir)), run_dir) as terminal:
        terminal.wait_for("env 03")
        terminal.wait_for("q quit")
        assert terminal.text.isascii()
        terminal.type("q")
        assert terminal.wait() == 0
