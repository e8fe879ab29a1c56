"""A terminal without Unicode: everything that is drawn has an ASCII form, on every screen, of Textual's parts too."""

import ast
from pathlib import Path

import pytest
from rich.cells import cell_len

from sanctum_events import demo_run, event
from sanctum_screens import sitting
from sapflow.sanctum import app as app_module
from sapflow.sanctum.glyphs import BLOCKS, to_ascii
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen
from sapflow.sanctum.widgets.request_dialog import RequestDialog
from sapflow.telemetry import wording
from sapflow.telemetry.events import EnvFailed

SANCTUM = Path(app_module.__file__).parent
SOURCES = [*SANCTUM.rglob("*.py"), Path(wording.__file__)]


def texts(path: Path) -> str:
    """Every text in the source that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {node.body[0].value for node in ast.walk(tree) if isinstance(node, described) and ast.get_docstring(node)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in docs)
    return "".join(node.value for node in constants if isinstance(node.value, str))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_glyph_that_is_drawn_has_an_ascii_form_of_its_width(path: Path) -> None:
    for glyph in (each for each in set(texts(path)) - {"�"} if not each.isascii()):
        plain = to_ascii(glyph)
        assert plain.isascii()
        assert plain != "?", glyph
        assert len(plain) == cell_len(glyph), glyph


def test_what_is_measured_is_told_from_the_guides_of_a_chart() -> None:
    guides = {to_ascii(glyph) for glyph in "┈─╌"}
    dots = {to_ascii(chr(0x2800 + bits)) for bits in range(1, 256)}
    assert not guides & dots
    assert not guides & {to_ascii(block) for block in BLOCKS}
    assert to_ascii("¼×") == "/4"


def test_a_strangers_letters_keep_their_cells() -> None:
    for word in ("naïve", "日本語", "ok"):
        assert len(to_ascii(word)) == cell_len(word)


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_every_screen_is_ascii_where_the_locale_has_no_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    failed = event(EnvFailed(epoch=15, error="日本語 in [red]"), 2, 10_000)
    async with sitting(tmp_path, [*demo_run(), failed], size) as now:
        seen = []

        async def look(*keys: str) -> None:
            await now.press(*keys)
            seen.append(now.text)
            assert now.text.isascii(), [c for c in set(now.text) if not c.isascii()]

        for keys in (("e",), ("escape", "a"), ("escape", "c"), ("escape", "question_mark"), ("escape", "T")):
            await look(*keys)
        for keys in (("slash", "x"), ("escape", "v"), ("v",), ("t",), ("space",), ("t", "L"), ("ctrl+p",), ("escape",)):
            await look(*keys)
        await now.app.open(EnvDetailScreen(3))
        for keys in ((), ("x",), ("escape", "p", "y")):
            await look(*keys)
        assert isinstance(now.app.screen, RequestDialog)
        for keys in (("escape", "enter"), ("n",)):
            await look(*keys)
        assert "enter seed" in "".join(seen)
