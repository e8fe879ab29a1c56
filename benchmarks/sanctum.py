"""Measures what Sanctum costs, and writes docs/sanctum-performance.md:

    python benchmarks/sanctum.py --write docs/sanctum-performance.md

The data half needs some 4 GB in the temporary directory, for a journal of ten million events.
"""

import argparse
import re
from pathlib import Path

import sanctum_app
import sanctum_data

HEAD = """# What Sanctum costs

Written by `python benchmarks/sanctum.py --write docs/sanctum-performance.md`.

"""
HALVES = ("data", "screen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="in the long journal")
    parser.add_argument("--only", choices=HALVES, help="measure this half; the other one stays as the page has it")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    options = parser.parse_args()
    measure = {"data": lambda: sanctum_data.section(options.events), "screen": sanctum_app.section}
    page = options.write.read_text(encoding="utf-8") if options.write and options.write.exists() else ""
    before = {part.split("\n", 1)[0].lower(): f"## {part}" for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]}
    halves = [measure[half]() if options.only in (half, None) else before.get(half, "") for half in HALVES]
    text = HEAD + "\n".join(half.rstrip() + "\n" for half in halves if half)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
