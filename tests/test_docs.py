"""What the documents say is so: their examples run, their links lead somewhere, their trees name what is there."""

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from commands import run_script

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    if page.parent.name != "records"
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path):
    assert run_script(code, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_s_tree_names_every_module_and_nothing_else():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(src/sapflow/.*?)```", text, re.DOTALL).group(1)
    named = set(re.findall(r"[\w/]+\.(?:py|tcss)\b", tree.replace("records.py/.toml", "records.py")))
    folders = set(re.findall(r"(\w+)/(?:\s|$|,)", tree))
    house = ROOT / "src" / "sapflow"
    there = {path.name for path in house.rglob("*.py")} | {path.name for path in house.rglob("*.tcss")}
    assert {name.rsplit("/", 1)[-1] for name in named} <= there
    for path in house.rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert path.name in {name.rsplit("/", 1)[-1] for name in named} or path.parent.name in folders, path


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_and_fetch_nothing(picture):
    text = picture.read_text(encoding="utf-8")
    xml.etree.ElementTree.fromstring(text)
    hosts = set(re.findall(r"https?://([^/\"')]+)", text))
    assert hosts <= {"www.w3.org"}  # the name of the SVG format itself


def test_the_make_targets_that_the_documents_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))) <= targets
