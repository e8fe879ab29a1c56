"""docs/history.md is what its commands print: all of them run, in their order, on runs that they make."""

import re
import shlex
from pathlib import Path

import pytest

from commands import finish_forked

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "history.md"
FRACTION = re.compile(r"\d+\.\d+")


def told(page: str) -> tuple[list[list[str]], list[float]]:
    """The words of each line, and the fractions among them, of which another processor has other last digits."""
    lines = [FRACTION.sub("FRACTION", line).split() for line in page.splitlines() if set(line) != {"─"}]
    return lines, [float(number) for number in FRACTION.findall(page)]


@pytest.mark.timeout(300)
def test_the_page_is_what_its_commands_print(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import sessions

    def forked(command: str, folder: Path) -> str:
        program, *arguments = shlex.split(command)
        assert program == "sapflow"
        done = finish_forked(arguments, folder)
        assert done.returncode == 0, done.stderr
        return "" if arguments[0] == "train" else done.stdout.rstrip("\n")

    monkeypatch.setattr(sessions, "run", forked)
    page = PAGE.read_text(encoding="utf-8")
    assert len([command for block in sessions.BLOCK.findall(page) for command in sessions.commands(block)]) == 10
    lines, fractions = told(sessions.normal(page))
    lines_now, fractions_now = told(sessions.normal(sessions.renewed(page)))
    assert lines_now == lines
    assert fractions_now == pytest.approx(fractions, rel=0.05, abs=0.02)
