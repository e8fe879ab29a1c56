"""What keeping runs costs, and asking them: sizes and times of a run of 10 million samples, beside plainer ways.

python benchmarks/history.py --write docs/history-performance.md
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import history_run
import numpy as np
import pyarrow as pa

import sapflow
from sapflow.history.output import write
from sapflow.history.query import asked
from sapflow.history.rolling import roll
from sapflow.telemetry.events import GradientSampled
from sapflow.telemetry.run_directory import JOURNAL_NAME, ROLLED_NAME
from sapflow.telemetry.source import Source

QUANTILES = """
SELECT env, slot, seed, epoch, quantile_cont(ratio, [0.5, 0.95]) AS ratios
FROM gradients WHERE NOT isnan(ratio) GROUP BY ALL
"""
CSV_ROWS = 200_000  # of which the size of a row is told
PARQUET_AIM = 30.0  # MB a million samples
QUERY_AIM = 1.0  # seconds a million samples


@dataclass
class Took:
    """Seconds on the clock, and of all processors."""

    wall: float
    cpu: float

    def a_million(self, samples: int) -> str:
        return f"{self.wall / samples * 1e6:.2f} ({self.cpu / samples * 1e6:.2f})"


def timed(work: Callable[[], object], times: int = 1) -> Took:
    """The quickest of so many."""
    took = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        took.append(Took(time.perf_counter() - wall, time.process_time() - cpu))
    return min(took, key=lambda one: one.wall)


def answer(run_dir: Path, sql: str) -> pa.Table:
    with sapflow.open_run(run_dir) as run, asked({"run": run}, sql) as reader:
        return reader.read_all()


def in_python(run_dir: Path) -> dict[tuple[object, ...], np.ndarray]:
    """The same quantiles without tables: every event decoded, every pass looked at."""
    ratios: dict[tuple[object, ...], list[float]] = defaultdict(list)
    with Source(run_dir) as source:
        while events := source.read():
            for event in events:
                payload = event.payload
                if isinstance(payload, GradientSampled):
                    key = (event.env_id, payload.slot_id, payload.seed_id, payload.epoch)
                    passes = zip(payload.entering, payload.leaving, strict=True)
                    ratios[key] += [leaving / entering for entering, leaving in passes if entering > 0]
    return {key: np.quantile(values, [0.5, 0.95]) for key, values in ratios.items()}


def check(run_dir: Path) -> None:
    """Both ways give the same numbers."""
    rows = answer(run_dir, QUANTILES).to_pylist()
    expected = in_python(run_dir)
    assert len(rows) == len(expected)
    for row in rows:
        key = (row["env"], row["slot"], row["seed"], row["epoch"])
        np.testing.assert_allclose(row["ratios"], expected[key], rtol=1e-9)


def csv_bytes_a_row(run_dir: Path) -> float:
    with sapflow.open_run(run_dir) as run, tempfile.TemporaryFile() as file:
        table = pa.Table.from_batches(_first(run.batches("gradients"), CSV_ROWS))
        write(table.to_reader(), file, "csv")
        return file.tell() / table.num_rows


def _first(reader: pa.RecordBatchReader, rows: int) -> list[pa.RecordBatch]:
    batches = []
    for batch in reader:
        batches.append(batch)
        if sum(one.num_rows for one in batches) >= rows:
            break
    return batches


STREAM = """
with sapflow.open_run(sys.argv[1]) as run:
    for batch in run.batches("gradients"):
        pass
"""


def peak(script: str, *arguments: object) -> float:
    """MiB that a process of its own has at most, which imports what is needed and runs the script (Linux)."""
    script = f"import sys\nimport sapflow\nsapflow.open_run\n{script}\nprint(open('/proc/self/status').read())"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(run_dir: Path, samples: int) -> str:
    """The page."""
    rows = 0

    def make() -> None:
        nonlocal rows
        rows = history_run.write(run_dir, samples)

    written = timed(make)
    journal_bytes = (run_dir / JOURNAL_NAME).stat().st_size
    csv = csv_bytes_a_row(run_dir)
    journal_peak = peak(STREAM, run_dir)
    by_python = timed(lambda: in_python(run_dir))
    by_journal = timed(lambda: answer(run_dir, QUANTILES))
    rolled = timed(lambda: roll(run_dir))
    sizes = {path.stem: path.stat().st_size for path in (run_dir / ROLLED_NAME).iterdir()}
    by_parquet = timed(lambda: answer(run_dir, QUANTILES), times=3)
    one_seed = timed(lambda: answer(run_dir, f"{QUANTILES} HAVING env = 3 AND slot = 'mid'"), times=3)
    few_epochs = timed(lambda: answer(run_dir, QUANTILES.replace("WHERE", "WHERE epoch <= 10 AND")), times=3)
    parquet_peak = peak(STREAM, run_dir)
    check(run_dir)

    def megabytes(size: float) -> str:
        return f"{size / rows:.1f}"

    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / rows:.2f}" for name, size in sorted(sizes.items()) if size > rows / 100)
    quick = by_parquet.wall / rows * 1e6
    slow = by_journal.wall / rows * 1e6
    small = total / rows
    return f"""# What keeping and asking runs costs

Written by `python benchmarks/history.py --samples {samples:g} --write docs/history-performance.md` on
{os.cpu_count()} cores ({platform.machine()}) that other work shared, Python {platform.python_version()}, pyarrow
{pa.__version__}, DuckDB {duckdb.__version__}. The run is said by the real journal: {history_run.ENVS} envs of
{len(history_run.SLOTS)} seeds, {history_run.PASSES_A_EPOCH} passes an epoch, a sample event for every
{history_run.PASSES_A_SAMPLE} passes, with random norms in all their digits; {rows:,} samples (rows of `gradients`)
in {rows // history_run.PASSES_A_SAMPLE:,} sample events.

| aim | measured | |
| --- | ---: | --- |
| ≤ {PARQUET_AIM:g} MB of Parquet a million samples, the journal with all its bodies in it | {small:.1f} MB | \
{_met(small <= PARQUET_AIM)} |
| p50 and p95 of every seed and epoch in ≤ {QUERY_AIM:g} s a million samples, from Parquet | {quick:.2f} s | \
{_met(quick <= QUERY_AIM)} |
| the same from a journal: of a run that is live, or was not rolled | {slow:.2f} s | {_met(slow <= QUERY_AIM)} |

So roll a run first, then ask: from a journal every event is decoded.

## Size, in MB a million samples

| form | MB | of CSV |
| --- | ---: | ---: |
| Parquet, of which {parts} | {megabytes(total)} | {total / rows / csv:.0%} |
| the journal | {megabytes(journal_bytes)} | {journal_bytes / rows / csv:.0%} |
| CSV of the table `gradients` alone, from {CSV_ROWS:,} rows | {csv:.1f} | 100% |

## Time, in seconds a million samples on the clock (and of all processors)

| what | seconds | times as fast as Python |
| --- | ---: | ---: |
| writing the run through the journal | {written.a_million(rows)} | |
| `sapflow roll`: into Parquet, read back, compared | {rolled.a_million(rows)} | |
| p50, p95 of every seed and epoch: every event decoded in Python | {by_python.a_million(rows)} | 1 |
| the same by `sapflow query` on the journal | {by_journal.a_million(rows)} | {by_python.wall / by_journal.wall:.1f} |
| the same by `sapflow query` on Parquet | {by_parquet.a_million(rows)} | {by_python.wall / by_parquet.wall:.0f} |
| of one seed, on Parquet | {one_seed.a_million(rows)} | |
| of the first ten epochs, on Parquet | {few_epochs.a_million(rows)} | |

The answers of Python and of SQL are the same to 1e-9. Going through all rows batch by batch takes a process of
{journal_peak:.0f} MiB at its peak on the journal and {parquet_peak:.0f} MiB on Parquet, of which Python, pyarrow and
Sapflow are {peak(""):.0f}.
"""


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=float, default=1e7)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = measure(Path(folder) / "run", int(arguments.samples))
    print(page)
    if arguments.write is not None:
        arguments.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
