"""Measures what watching gradients costs, against the same model unwatched; writes docs/performance.md.

    python benchmarks/overhead.py --write docs/performance.md

Needs the dependency group `bench`, and about `--minutes`: what is left of them is shared out among the rows that are
left, by the length of their steps and by how narrow their intervals have to be.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import overhead_contenders as ways
import torch
from overhead_contenders import Contender
from overhead_inside import inside
from overhead_measure import COMPILED, COMPILED_BF16, EAGER, EAGER_BF16, ON_A_GPU, Mode, measure, memory, prepare
from overhead_models import CHECKPOINTED, CNN, GPT, GPU_GPT, MLP, TRANSFORMER, Task
from overhead_page import page

COMPILING = 25  # seconds, for two models, twice, of which most have been compiled before
BARE = [ways.NOTHING, ways.SAPFLOW]
FEW = [ways.NOTHING, replace(ways.SAPFLOW, weight=2.0), ways.LEAST_NORMS, ways.HOOKS]
COMPARED = [replace(ways.NOTHING, weight=0.5), replace(ways.SAPFLOW, weight=1.0)]
TABLES: list[tuple[Task, Mode, list[Contender]]] = [
    *((task, EAGER, ways.EVERYTHING) for task in (MLP, CNN)),
    *((task, EAGER, ways.LONG) for task in (TRANSFORMER, GPT)),
    (CHECKPOINTED, EAGER, BARE),
    *((task, EAGER_BF16, FEW) for task in (MLP, CNN, TRANSFORMER, GPT)),
    *((task, mode, COMPARED) for mode in (COMPILED, COMPILED_BF16) for task in (MLP, CNN, TRANSFORMER, GPT)),
    *((GPU_GPT, mode, BARE if mode.compiled else FEW) for mode in ON_A_GPU if torch.cuda.is_available()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=32.0, help="in all; each row has 20 pairs of steps at least")
    parser.add_argument("--write", type=Path, help="the page to write; printed otherwise")
    parser.add_argument("--only", default="", help="tables whose title contains this, such as 'MLP, eager'")
    options = parser.parse_args()
    prepare()
    end = time.monotonic() + 60 * options.minutes
    chosen = [(task, mode, them) for task, mode, them in TABLES if options.only in f"{task.name}, {mode.name}"]
    # First, since compiling leaves tensors behind.
    memories = [memory(task) for task in (MLP, TRANSFORMER) if any(task is one for one, _, _ in chosen)]
    insides = [inside(task) for task in dict.fromkeys(task for task, mode, _ in chosen if mode is EAGER)]
    weight = sum(task.weight * contender.weight for task, _, contenders in chosen for contender in contenders)
    to_compile = sum(mode.compiled for _, mode, contenders in chosen for _ in contenders)
    tables = []
    for task, mode, contenders in chosen:
        rows = []
        for contender in contenders:
            share = task.weight * contender.weight
            left = end - time.monotonic() - to_compile * COMPILING
            rows.append(measure(task, mode, contender, max(0.0, left) * share / weight))
            weight -= share
            to_compile -= mode.compiled
            row = rows[-1]
            print(
                f"{task.name}, {mode.name}, {row.contender}: {row.percent.shown(2)} %, {row.pairs} pairs",
                file=sys.stderr,
            )
        tables.append((task, mode, rows))
    text = page(options.minutes, tables, memories, insides)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
