"""The sums on the host: what the closed passes of an epoch come to, row by row, in float64."""

import math

import torch

from sapflow.gradients.pass_sums import ENTERING, GIVEN, LEAVING, TAKEN, fired_cells
from sapflow.telemetry.events import HISTOGRAM_BINS, HISTOGRAM_HIGHEST_OCTAVE, HISTOGRAM_LOWEST_OCTAVE


class EpochSums:
    """Folds blocks of passes, vectorised over all rows; every field has one element a row.

    A pass counts for a row when both of its sides fired, both are finite, and something entered.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.entering = torch.zeros(rows, dtype=torch.float64)  # Σ entering² over the passes that count
        self.leaving = torch.zeros(rows, dtype=torch.float64)
        self.taken = torch.zeros(rows, dtype=torch.float64)  # Σ mean squares of inputs, over the passes that saw them
        self.given = torch.zeros(rows, dtype=torch.float64)
        self.passes = torch.zeros(rows, dtype=torch.int64)
        self.non_finite = torch.zeros(rows, dtype=torch.int64)
        self.run = torch.zeros(rows, dtype=torch.int64)  # non-finite passes in a row, up to now
        self.longest_run = torch.zeros(rows, dtype=torch.int64)
        self.entered = torch.zeros(rows, dtype=torch.bool)  # something other than 0 entered, in any pass
        self.fired = torch.zeros(rows, 2, dtype=torch.bool)
        self.lowest = torch.full((rows,), math.inf, dtype=torch.float64)
        self.highest = torch.zeros(rows, dtype=torch.float64)
        self.last = torch.zeros(rows, dtype=torch.float64)
        self.histogram = torch.zeros(rows, HISTOGRAM_BINS, dtype=torch.int64)

    def grow(self, rows: int) -> None:
        """Make room for more rows."""
        larger = EpochSums(rows)
        for name, old in vars(self).items():
            if isinstance(old, torch.Tensor):
                getattr(larger, name)[: self.rows] = old
        self.__dict__.update(larger.__dict__)

    def add(self, squares: torch.Tensor) -> None:
        """Fold closed passes: squares of shape (passes, rows, columns), as many rows as there were at the time."""
        if squares.shape[-1] > TAKEN:
            self._add_activations(squares[..., [TAKEN, GIVEN]])
        squares = squares[..., [ENTERING, LEAVING]]
        fired = fired_cells(squares)
        entering, leaving = squares[..., ENTERING], squares[..., LEAVING]
        non_finite = (fired & ~squares.isfinite()).any(-1)
        counts = fired.all(-1) & ~non_finite & (entering > 0)
        zero = squares.new_zeros(())
        ratio = torch.where(counts, (leaving / entering).sqrt(), zero)

        here = slice(0, squares.shape[1])
        self.entering[here] += torch.where(counts, entering, zero).sum(0)
        self.leaving[here] += torch.where(counts, leaving, zero).sum(0)
        self.passes[here] += counts.sum(0)
        self.non_finite[here] += non_finite.sum(0)
        self.entered[here] |= (fired[..., ENTERING] & (entering != 0)).any(0)
        self.fired[here] |= fired.any(0)
        self.lowest[here] = torch.minimum(self.lowest[here], torch.where(counts, ratio, math.inf).amin(0))
        self.highest[here] = torch.maximum(self.highest[here], ratio.amax(0))
        self.histogram[here] += histogram_of(ratio, counts)
        numbers = torch.arange(1, len(squares) + 1).unsqueeze(-1)
        last = (counts * numbers).amax(0)  # 0 where none counts
        last_ratio = ratio.gather(0, (last - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
        self.last[here] = torch.where(last > 0, last_ratio, self.last[here])
        self._add_runs(here, non_finite, fired.any(-1))

    def _add_runs(self, here: slice, non_finite: torch.Tensor, any_fired: torch.Tensor) -> None:
        if not bool(non_finite.any()):
            self.run[here] = torch.where(any_fired.any(0), 0, self.run[here])
            return
        for bad, fired in zip(non_finite, any_fired, strict=True):
            run = torch.where(bad, self.run[here] + 1, torch.where(fired, 0, self.run[here]))
            self.run[here] = run
            self.longest_run[here] = torch.maximum(self.longest_run[here], run)

    def _add_activations(self, mean_squares: torch.Tensor) -> None:
        seen = (fired_cells(mean_squares) & mean_squares.isfinite()).all(-1, keepdim=True)
        taken, given = torch.where(seen, mean_squares, mean_squares.new_zeros(())).sum(0).unbind(-1)
        self.taken[: len(taken)] += taken
        self.given[: len(given)] += given


def histogram_of(ratio: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Counts of the ratios (passes, rows) by octave, of shape (rows, HISTOGRAM_BINS); 0 falls into the lowest bin."""
    exponent = torch.frexp(ratio).exponent - 1  # ⌊log2⌋, exact at powers of two
    exponent = torch.where(ratio == 0, HISTOGRAM_LOWEST_OCTAVE - 1, exponent)
    bins = exponent.clamp(HISTOGRAM_LOWEST_OCTAVE - 1, HISTOGRAM_HIGHEST_OCTAVE + 1) - (HISTOGRAM_LOWEST_OCTAVE - 1)
    histogram = torch.zeros(ratio.shape[1], HISTOGRAM_BINS, dtype=torch.int64)
    return histogram.scatter_add_(1, bins.long().T, counts.long().T)
