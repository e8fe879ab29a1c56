"""The sums on the host: what the closed passes of an epoch come to, row by row, in float64.

In NumPy, whose operations on so few numbers cost a fifth of torch's.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from sapflow.gradients.cells import ENTERING, GIVEN, LEAVING, TAKEN
from sapflow.telemetry.events import HISTOGRAM_BINS, HISTOGRAM_HIGHEST_OCTAVE, HISTOGRAM_LOWEST_OCTAVE

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class EpochSums:
    """Folds blocks of passes, vectorised over all rows; every field has one element a row.

    A pass counts for a row when both of its sides fired, both are finite, and something entered.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.entering = np.zeros(rows)  # Σ entering² over the passes that count
        self.leaving = np.zeros(rows)
        self.taken = np.zeros(rows)  # Σ mean squares of inputs, over the passes that saw them
        self.given = np.zeros(rows)
        self.passes = np.zeros(rows, np.int64)
        self.non_finite = np.zeros(rows, np.int64)
        self.run = np.zeros(rows, np.int64)  # non-finite passes in a row, up to now and from before
        self.longest_run = np.zeros(rows, np.int64)
        self.entered = np.zeros(rows, np.bool_)  # something other than 0 entered, in any pass
        self.fired = np.zeros((rows, 2), np.bool_)
        self.lowest = np.full(rows, np.inf)
        self.highest = np.zeros(rows)
        self.last = np.zeros(rows)
        self.histogram = np.zeros((rows, HISTOGRAM_BINS), np.int64)

    def grow(self, rows: int) -> None:
        """Make room for more rows."""
        larger = EpochSums(rows)
        for name, old in vars(self).items():
            if isinstance(old, np.ndarray):
                getattr(larger, name)[: self.rows] = old
        self.__dict__.update(larger.__dict__)

    def following(self, rows: int, measured: Iterable[int]) -> "EpochSums":
        """The sums of what comes next, empty; of the rows that are measured still, a run goes on in them."""
        following = EpochSums(rows)
        for row in measured:
            if row < self.rows:
                following.run[row] = self.run[row]
        return following

    def add(self, squares: torch.Tensor) -> None:
        """Fold closed passes: squares of shape (passes, rows, columns), as many rows as there were at the time."""
        numbers = squares.numpy()
        if numbers.shape[-1] > TAKEN:
            self._add_activations(numbers[..., [TAKEN, GIVEN]])
        numbers = numbers[..., [ENTERING, LEAVING]]
        fired = _fired(numbers)
        entering, leaving = numbers[..., ENTERING], numbers[..., LEAVING]
        bad = fired & ~np.isfinite(numbers)
        non_finite = bad[..., ENTERING] | bad[..., LEAVING]
        counts = fired.all(-1) & ~non_finite & (entering > 0)
        ratio = np.zeros(entering.shape)
        np.divide(leaving, entering, out=ratio, where=counts)
        np.sqrt(ratio, out=ratio)

        here = slice(0, numbers.shape[1])
        self.entering[here] += entering.sum(0, where=counts)
        self.leaving[here] += leaving.sum(0, where=counts)
        self.passes[here] += counts.sum(0)
        self.non_finite[here] += non_finite.sum(0)
        self.entered[here] |= (fired[..., ENTERING] & (entering != 0)).any(0)
        self.fired[here] |= fired.any(0)
        self.lowest[here] = np.minimum(self.lowest[here], ratio.min(0, where=counts, initial=np.inf))
        self.highest[here] = np.maximum(self.highest[here], ratio.max(0))
        self.histogram[here] += histogram_of(ratio, counts)
        last = len(ratio) - 1 - counts[::-1].argmax(0)  # the last pass that counts, where one does
        last_ratio = np.take_along_axis(ratio, last[np.newaxis], 0)[0]
        self.last[here] = np.where(counts.any(0), last_ratio, self.last[here])
        self._add_runs(here, non_finite, fired[..., ENTERING] | fired[..., LEAVING])

    def _add_runs(self, here: slice, non_finite: Flags, any_fired: Flags) -> None:
        if not non_finite.any():
            self.run[here] = np.where(any_fired.any(0), 0, self.run[here])
            return
        for bad, fired in zip(non_finite, any_fired, strict=True):
            run = np.where(bad, self.run[here] + 1, np.where(fired, 0, self.run[here]))
            self.run[here] = run
            self.longest_run[here] = np.maximum(self.longest_run[here], np.where(bad, run, 0))

    def _add_activations(self, mean_squares: Floats) -> None:
        seen = (_fired(mean_squares) & np.isfinite(mean_squares)).all(-1, keepdims=True)
        taken, given = mean_squares.sum(0, where=seen).T
        self.taken[: len(taken)] += taken
        self.given[: len(given)] += given


def _fired(squares: Floats) -> Flags:
    """As `fired_cells`."""
    never: Flags = (squares == 0) & np.signbit(squares)
    return ~never


def histogram_of(ratio: Floats, counts: Flags) -> NDArray[np.int64]:
    """Counts of the ratios (passes, rows) by octave, of shape (rows, HISTOGRAM_BINS); 0 falls into the lowest bin."""
    exponent = np.frexp(ratio)[1] - 1  # ⌊log2⌋, exact at powers of two
    lowest, highest = HISTOGRAM_LOWEST_OCTAVE - 1, HISTOGRAM_HIGHEST_OCTAVE + 1
    bins = np.where(ratio == 0, lowest, exponent).clip(lowest, highest) - lowest
    rows = np.arange(ratio.shape[1])
    flat = (bins + rows * HISTOGRAM_BINS)[counts]
    return np.bincount(flat, minlength=len(rows) * HISTOGRAM_BINS).reshape(len(rows), HISTOGRAM_BINS)
