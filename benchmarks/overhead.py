"""Measures what watching gradients costs, against the same model unwatched; writes docs/performance.md.

    python benchmarks/overhead.py --write docs/performance.md

Needs the dependency group `bench`, and at most `--budget` seconds a row, besides compiling.
"""

import argparse
import sys
from pathlib import Path

import overhead_contenders as ways
from overhead_contenders import Contender
from overhead_measure import COMPILED, COMPILED_BF16, EAGER, EAGER_BF16, Mode, measure, memory, prepare
from overhead_models import CHECKPOINTED, CNN, GPT, MLP, TRANSFORMER, Task
from overhead_page import page

FEW = [ways.NOTHING, ways.SAPFLOW, ways.HOOKS]
BARE = [ways.NOTHING, ways.SAPFLOW]
TABLES: list[tuple[Task, Mode, list[Contender]]] = [
    *((task, EAGER, ways.EVERYTHING) for task in (MLP, CNN, TRANSFORMER, GPT)),
    (CHECKPOINTED, EAGER, BARE),
    *((task, EAGER_BF16, FEW) for task in (MLP, CNN, TRANSFORMER, GPT)),
    *((task, mode, BARE) for mode in (COMPILED, COMPILED_BF16) for task in (MLP, CNN, TRANSFORMER, GPT)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds a row, at most")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    parser.add_argument("--only", default="", help="tables whose title contains this, such as 'MLP, eager'")
    options = parser.parse_args()
    prepare()
    chosen = [(task, mode, them) for task, mode, them in TABLES if options.only in f"{task.name}, {mode.name}"]
    # First, since compiling leaves tensors behind.
    memories = [memory(task) for task in (MLP, TRANSFORMER) if any(task is one for one, _, _ in chosen)]
    tables = []
    for task, mode, contenders in chosen:
        rows = []
        for contender in contenders:
            rows.append(measure(task, mode, contender, options.budget))
            row = rows[-1]
            print(
                f"{task.name}, {mode.name}, {row.contender}: {row.percent.shown(2)} %, {row.pairs} pairs",
                file=sys.stderr,
            )
        tables.append((task, mode, rows))
    text = page(options.budget, tables, memories)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
