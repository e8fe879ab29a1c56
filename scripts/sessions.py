"""Runs the commands that a page shows and puts what they print under them: scripts/sessions.py docs/history.md."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
# What another day, machine or pace gives otherwise: times, versions, sizes, and counts that samples have a part in.
VARYING = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE TIME"),
    (r"^versions .*$", "versions VERSIONS"),
    (r"[\d.]+ [kM]B", "SIZE"),
    (r"\d+ events and", "N events and"),
)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a session (a line after "$ ", and those after "> ") with what it printed."""
    for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = session.splitlines()
        end = next((number for number, line in enumerate(lines[1:], 1) if not line.startswith("> ")), len(lines))
        yield "\n".join([lines[0], *(line[2:] for line in lines[1:end])]), "\n".join(lines[end:])


def run(command: str, folder: Path) -> str:
    """What the command prints; a training's is not shown, for it is a progress bar."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr}")
    return "" if command.startswith("sapflow train") else done.stdout.rstrip("\n")


def normal(text: str) -> str:
    """Without what varies."""
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


def renewed(page: str) -> str:
    """The page with what its commands print now, all of them run in one new folder."""
    with tempfile.TemporaryDirectory() as name:

        def renew(block: re.Match[str]) -> str:
            parts = []
            for command, _ in commands(block[1]):
                shown = "$ " + command.replace("\n", "\n> ")
                parts += [shown, *filter(None, [run(command, Path(name))])]
            return "```console\n" + "\n".join(parts) + "\n```"

        return BLOCK.sub(renew, page)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        place = Path(argument)
        place.write_text(renewed(place.read_text(encoding="utf-8")), encoding="utf-8")
