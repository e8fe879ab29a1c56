"""Cells on a device: one row a probe, in pages, with a ring of closed passes beside each page.

On the CPU cells are numbers in memory, and are treated as such: an operation of torch on one number takes a microsecond
where its code is in the cache, and ten where it is not, as in training.
"""

import torch
from torch import Tensor

# Columns: squared gradient norms at output and input and, where asked for, mean squares of inputs and outputs.
ENTERING, LEAVING, TAKEN, GIVEN = 0, 1, 2, 3
# Cells start at −0.0: adding anything, even 0.0, gives +0.0 or more, so the sign tells "never fired" from "zero".
NEVER_FIRED = -0.0
# Rows that are allocated, moved and closed together.
PAGE_ROWS = 8


class Row:
    """A probe's place in the sums: its index, two 0-dimensional cells for gradients, and a pair for activations.

    Compiled code keeps the cells of the call that it was entered by, so a cell changes its memory only when a model
    changes its device.
    """

    def __init__(self, index: int, page: "Page") -> None:
        self.index = index
        self.bind(page)

    def bind(self, page: "Page") -> None:
        """Take over the cells of a page, and their memory where it is the host's."""
        here, size = self.index % PAGE_ROWS, page.cells[0].nbytes
        cells = page.cells[here]
        # `data` gives each its own version counter: adding to one is no change of the others to autograd.
        self.cells = tuple(cell.data for cell in cells[:TAKEN])
        self.activations = cells[TAKEN:].data
        self.memory = None if page.memory is None else page.memory.cast("B")[here * size : (here + 1) * size].cast("f")


class Page:
    """PAGE_ROWS rows on one device: cells of shape (rows, columns), and a ring (passes, rows, columns) of them."""

    def __init__(self, first: int, ring_passes: int, columns: int, device: torch.device) -> None:
        self.cells = torch.full((PAGE_ROWS, columns), NEVER_FIRED, dtype=torch.float32, device=device)
        self.ring = self.cells.expand(ring_passes, -1, -1).clone()
        self._find_memory()
        self._first = first
        self.rows: list[Row] = []

    def new_row(self) -> Row:
        """One of its rows that nobody has had."""
        self.rows.append(Row(self._first + len(self.rows), self))
        return self.rows[-1]

    def _find_memory(self) -> None:
        """The same cells and ring as plain memory, where they are the host's: of cells as numbers, too."""
        self.memory: memoryview | None = None
        if self.cells.device.type == "cpu":
            self.memory = self.cells.numpy().data
            self._bytes, self._ring_bytes = self.memory.cast("B"), self.ring.numpy().data.cast("B")
            self._never_fired = torch.full_like(self.cells, NEVER_FIRED).numpy().tobytes()

    def close(self, position: int) -> None:
        """Put the cells into the ring, and begin again."""
        if self.memory is None:
            self.ring[position].copy_(self.cells)
        else:
            size = len(self._never_fired)
            self._ring_bytes[position * size : (position + 1) * size] = self._bytes
        self.begin_again()

    def begin_again(self) -> None:
        """Forget what the cells hold."""
        if self.memory is None:
            self.cells.fill_(NEVER_FIRED)
        else:
            self._bytes[:] = self._never_fired

    def finite(self) -> bool:
        """Whether all cells are, as far as nobody has to wait for them."""
        return self.memory is None or bool(self.cells.isfinite().all())

    def move(self, device: torch.device) -> None:
        """Take the cells to another device, and leave the passes that were closed behind."""
        self.cells, self.ring = self.cells.to(device), torch.empty_like(self.ring, device=device)
        self._find_memory()
        for row in self.rows:
            row.bind(self)


def fired_cells(squares: Tensor) -> Tensor:
    """Which cells any gradient reached: all but those that still hold −0.0 (a NaN's sign means nothing)."""
    return ~((squares == 0) & squares.signbit())
