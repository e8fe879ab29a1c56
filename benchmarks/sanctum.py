"""Measures what Sanctum costs; writes docs/sanctum-performance.md.

    python benchmarks/sanctum.py --write docs/sanctum-performance.md

Needs some 4 GB in the temporary directory, for a journal of ten million events.
"""

import argparse
from pathlib import Path

import sanctum_data

HEAD = """# What Sanctum costs

Written by `python benchmarks/sanctum.py --write docs/sanctum-performance.md`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="in the long journal")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    options = parser.parse_args()
    text = "\n".join([HEAD, sanctum_data.section(options.events)])
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
