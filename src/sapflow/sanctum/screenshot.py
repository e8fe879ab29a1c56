"""A picture of the screen as a file: names no host of the web, and never takes another file's place."""

import re
from pathlib import Path

# The exporter names fonts on the web (without them the viewer's own monospace font is used) and its makers' site.
_WEB = re.compile(r"@font-face\s*\{.*?\}|<!--.*?-->", re.DOTALL)


def without_web(svg: str) -> str:
    """The picture without what a viewer would fetch elsewhere."""
    return _WEB.sub("", svg)


def save(svg: str, folder: Path, name: str) -> Path:
    """Writes the picture as NAME.svg, or NAME-2.svg and so on where that is taken; returns its path.

    Raises:
        OSError: nothing can be written there.
    """
    names = (f"{name}.svg", *(f"{name}-{number}.svg" for number in range(2, 1_000)))
    path = next(path for path in map(folder.joinpath, names) if not path.exists())
    with path.open("x", encoding="utf-8") as file:  # where another one was quicker, nothing is written
        file.write(without_web(svg))
    return path
