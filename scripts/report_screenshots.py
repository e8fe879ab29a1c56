"""Draws reports as a browser shows them, into small PNGs: report_screenshots.py DEMO_RUN OUT_DIR.

The report of the run, and that of a comparison which is trained here: five runs of a plain host, and five in which a
vanishing and an exploding seed are planted. Needs chromium.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SAPFLOW = (sys.executable, "-m", "sapflow")
BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
HEIGHTS = {390: 2600, 900: 1900, 1600: 1750}
SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers for prefers-color-scheme
COLOURS = 256  # enough for a page of flat colours, and half of the bytes
PLANTS = ("--plant", "0:mid:sigmoid", "--plant", "1:mid:explosive")
SIZE = ("--task", "digits-mlp", "--envs", "2", "--epochs", "16", "--checkpoint-every", "0")


def train(folder: Path) -> list[Path]:
    """2 × 5 runs, each with random numbers of its own."""
    runs = []
    for name, plants in (("plain", ()), ("planted", PLANTS)):
        for number in range(1, 6):
            runs.append(folder / f"{name}-{number}")
            options = (*SIZE, "--rng-seed", str(number), *plants, "--run-dir", str(runs[-1]))
            subprocess.run([*SAPFLOW, "train", *options], check=True, stdout=subprocess.DEVNULL)
    return runs


def report(page: Path, *runs: Path) -> Path:
    subprocess.run([*SAPFLOW, "report", *map(str, runs), "-o", str(page)], check=True, stdout=subprocess.DEVNULL)
    return page


def draw(page: Path, picture: Path, width: int, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        options = (
            f"--user-data-dir={profile}", f"--window-size={width},{HEIGHTS[width]}", f"--screenshot={picture}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        )  # fmt: skip
        subprocess.run([*BROWSER, *options, page.as_uri()], check=True, capture_output=True)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


def draw_in_print(page: Path, picture: Path) -> None:
    """As it is printed: the rules for paper are the screen's, on a page as wide as A4 within its margins."""
    paper = page.with_name("paper.html")
    paper.write_text(page.read_text(encoding="utf-8").replace("@media print", "@media screen"), encoding="utf-8")
    draw(paper, picture, 900, "light")


def main(demo: Path, out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = {
            "demo": report(folder / "demo.html", demo),
            "comparison": report(folder / "comparison.html", *train(folder)),
        }
        for what, page in pages.items():
            for width in HEIGHTS:
                for scheme in SCHEMES:
                    draw(page, out_dir / f"{what}-{width}-{scheme}.png", width, scheme)
            draw_in_print(page, out_dir / f"{what}-print.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: report_screenshots.py DEMO_RUN OUT_DIR")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
