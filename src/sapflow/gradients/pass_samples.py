"""Samples: the norms of single passes, taken from blocks of them."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from sapflow.gradients.cells import ENTERING, LEAVING, fired_cells

# Blocks of passes that wait: more, by far, than come between two samples of somebody who samples.
MOST_BLOCKS = 64


class PassSample(NamedTuple):
    """Passes of one module: their indices within the epoch and the norms of each; non-finite norms are data."""

    pass_index: tuple[int, ...]
    entering: tuple[float, ...]
    leaving: tuple[float, ...]


class _Block(NamedTuple):
    pass_index: tuple[int, ...]
    squares: torch.Tensor


class Unsampled:
    """Passes that have reached the host, until somebody takes them; of too many, the oldest go."""

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque(maxlen=MOST_BLOCKS)

    def add(self, pass_index: tuple[int, ...], squares: torch.Tensor) -> None:
        """Keep passes, squares of shape (passes, rows, columns)."""
        self._blocks.append(_Block(pass_index, squares))

    def take(self, rows: Mapping[str, int]) -> dict[str, PassSample]:
        """All that is kept, of each name that a gradient reached, and keep it no longer."""
        samples = {name: _sample_of(self._blocks, row) for name, row in rows.items()}
        self._blocks.clear()
        return {name: sample for name, sample in samples.items() if sample.pass_index}


def _sample_of(blocks: Iterable[_Block], row: int) -> PassSample:
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
