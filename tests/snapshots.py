"""What a screen looked like when somebody last looked at it: texts and colours, kept beside the tests.

SAPFLOW_SNAPSHOTS=write keeps what is drawn now; look at the difference before you commit it.
"""

import os
from difflib import unified_diff
from itertools import groupby, islice
from pathlib import Path
from string import ascii_letters, digits

from textual.app import App
from textual.strip import Strip

FOLDER = Path(__file__).parent / "snapshots"
WRITE = os.environ.get("SAPFLOW_SNAPSHOTS") == "write"
LETTERS = ascii_letters + digits


def drawn(app: App[None]) -> str:
    """The terminal's lines, then for each line how many cells have which colours, and which those are."""
    strips = app.screen._compositor.render_strips()
    texts = ["".join(segment.text for segment in strip).rstrip() for strip in strips]
    letters: dict[str, str] = {}
    colours = [_colours(strip, letters) for strip in strips]
    legend = [f"{letter} {style}" for style, letter in letters.items()]
    return "\n".join((*texts, "", *(f"{n:02} {line}" for n, line in enumerate(colours)), "", *legend))


def _colours(strip: Strip, letters: dict[str, str]) -> str:
    styles = [str(segment.style) for segment in strip for _ in range(segment.cell_length)]
    runs = [(style, len(list(run))) for style, run in groupby(styles)]
    return " ".join(f"{letters.setdefault(style, LETTERS[len(letters)])}{length}" for style, length in runs)


def check(name: str, shots: dict[str, str]) -> None:
    """Compares what was drawn, by the names of the screens, with what is kept under `name`; what is new is kept."""
    path = FOLDER / f"{name}.txt"
    now = "".join(f"═══ {screen} ═══\n{shot}\n\n" for screen, shot in shots.items())
    if WRITE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(now, encoding="utf-8")
    assert path.exists(), f"{path} is missing: SAPFLOW_SNAPSHOTS=write makes it"
    kept = path.read_text(encoding="utf-8")
    different = unified_diff(kept.splitlines(), now.splitlines(), "kept", "now", n=0)
    assert now == kept, "\n".join(("", *islice(different, 60)))
