"""Samples: the norms of single passes, taken from blocks of them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from sapflow.gradients.pass_sums import ENTERING, LEAVING, fired_cells


class PassSample(NamedTuple):
    """Passes of one module: their indices within the epoch and the norms of each; non-finite norms are data."""

    pass_index: tuple[int, ...]
    entering: tuple[float, ...]
    leaving: tuple[float, ...]


class ArrivedPasses(NamedTuple):
    """Passes that have reached the host: squares of shape (passes, rows, columns), float64."""

    pass_index: tuple[int, ...]
    squares: torch.Tensor


def sample_of(blocks: Iterable[ArrivedPasses], row: int) -> PassSample:
    """The passes of one row in which something entered or left; a side that did not fire is NaN."""
    pass_index: list[int] = []
    norms: list[list[float]] = []
    for block in blocks:
        if row >= block.squares.shape[1]:
            continue
        cells = block.squares[:, row]
        fired = fired_cells(cells)
        passes = fired[:, [ENTERING, LEAVING]].any(-1).nonzero().flatten()
        values = torch.where(fired, cells.sqrt(), torch.nan)[passes]
        pass_index += [block.pass_index[position] for position in passes.tolist()]
        norms += values.tolist()
    return PassSample(
        tuple(pass_index), tuple(pair[ENTERING] for pair in norms), tuple(pair[LEAVING] for pair in norms)
    )
