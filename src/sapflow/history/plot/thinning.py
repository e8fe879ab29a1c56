"""Fewer rows for a picture, with every extreme and every kind of trouble kept."""

from collections.abc import Callable, Sequence

from sapflow.history.plot.places import Row, not_measured

BINS = 60
MOST_ROWS = 2 * BINS


def thinned(rows: Sequence[Row]) -> list[Row]:
    """The rows of one life, at most a few for each of 60 stretches of epochs where there are more than 120.

    Kept of each stretch are the rows with the smallest and the largest ratio, the first that was not measured, and the
    first with a pass that was not finite; of the life, the first and the last.
    """
    if len(rows) <= MOST_ROWS:
        return list(rows)
    kept = {0, len(rows) - 1}
    for number in range(BINS):
        start, end = number * len(rows) // BINS, (number + 1) * len(rows) // BINS
        span = range(start, end)
        measured = [index for index in span if rows[index]["ratio"] == rows[index]["ratio"]]
        if measured:
            kept.add(min(measured, key=lambda index: rows[index]["ratio"]))
            kept.add(max(measured, key=lambda index: rows[index]["ratio"]))
        kept |= _first(span, lambda index: not_measured(rows[index]))
        kept |= _first(span, lambda index: rows[index]["non_finite"] > 0)
    return [rows[index] for index in sorted(kept)]


def _first(span: range, holds: Callable[[int], bool]) -> set[int]:
    return set(next(([index] for index in span if holds(index)), []))
