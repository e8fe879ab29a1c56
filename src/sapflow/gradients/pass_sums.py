"""The sums on the device: one row a probe, a ring of closed passes, and copies that nobody waits for.

A backward pass only adds into `cells`; closing it copies all cells into the ring with one kernel and resets them with
another. Everything else (minimum, histogram, non-finite passes …) is derived on the host from the ring's rows, which
travel there in one copy a drain.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sapflow.gradients.ranks import Ranks

ENTERING, LEAVING = 0, 1
# Cells start at −0.0: adding anything, even 0.0, gives +0.0 or more, so the sign tells "never fired" from "zero".
NEVER_FIRED = -0.0


@dataclass(frozen=True)
class PassBlock:
    """Closed passes on their way to the host: squares of shape (passes, rows, 2), float32."""

    first_pass: int
    squares: torch.Tensor
    arrived: torch.cuda.Event | None

    def ready(self) -> bool:
        """Whether the copy has arrived; asks, never waits."""
        return self.arrived is None or self.arrived.query()

    def wait(self) -> None:
        """Wait for the copy."""
        if self.arrived is not None:
            self.arrived.synchronize()


class PassSums:
    """Squared norms of the pass that is open, (rows, 2), and of the last closed ones, (ring_passes, rows, 2).

    Allocated on the device of the first tensor that a probe meets; 8 bytes a row and pass.
    """

    def __init__(self, ring_passes: int, rows: int = 16, ranks: "Ranks | None" = None) -> None:
        self.ring_passes = ring_passes
        self.ranks = ranks
        self.rows = rows
        self.fired = False
        self.passes_closed = 0  # since the epoch began
        self.cells: torch.Tensor | None = None
        self.generation = 0  # counts reallocations: views of `cells` taken before one are stale
        self._ring: torch.Tensor | None = None
        self._in_ring = 0
        self._travelling: deque[PassBlock] = deque()

    def _ensure_allocated(self, device: torch.device) -> None:
        """Give the sums their home, once."""
        if self.cells is None:
            self.cells = torch.full((self.rows, 2), NEVER_FIRED, dtype=torch.float32, device=device)
            self._ring = torch.empty((self.ring_passes, self.rows, 2), dtype=torch.float32, device=device)
            self.generation += 1

    def cells_of(self, row: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The two cells of a row, 0-dimensional; `device` is where the sums are put if they have no home yet."""
        self._ensure_allocated(device)
        assert self.cells is not None
        return self.cells[row, ENTERING], self.cells[row, LEAVING]

    def reset_row(self, row: int) -> None:
        """Clear a row that a new probe takes over."""
        if self.cells is not None:
            self.cells[row].fill_(NEVER_FIRED)

    def grow(self, rows: int) -> None:
        """Make room for more probes; closed passes set out for the host first."""
        self.rows = rows
        if self.cells is None:
            return
        self.send()
        old, self.cells = self.cells, None
        self._ensure_allocated(old.device)
        assert self.cells is not None
        self.cells[: len(old)] = old

    def home(self, modules: Iterable[nn.Module | None]) -> torch.device:
        """Where the sums live or, as long as nothing fired, will: with the parameters of the modules."""
        if self.cells is not None:
            return self.cells.device
        parameters = (parameter for module in modules if module is not None for parameter in module.parameters())
        return next((parameter.device for parameter in parameters), torch.device("cpu"))

    def open_pass(self, device: torch.device) -> None:
        """Let the open pass count even if nothing fires in it; `device` as in `cells_of`."""
        self._ensure_allocated(device)
        self.fired = True

    def close_pass(self) -> None:
        """End the open pass: two kernels, no synchronisation. A pass in which nothing fired is none."""
        if not self.fired:
            return
        assert self.cells is not None
        assert self._ring is not None
        self._ring[self._in_ring].copy_(self.cells)
        self.cells.fill_(NEVER_FIRED)
        self._in_ring += 1
        self.passes_closed += 1
        self.fired = False
        if self._in_ring == self.ring_passes:
            self.send()

    def send(self) -> None:
        """Let the closed passes set out for the host; on CUDA into pinned memory, behind the kernels that fill them."""
        if self._in_ring == 0:
            return
        assert self._ring is not None
        filled = self._ring[: self._in_ring]
        arrived = None
        if filled.is_cuda:
            squares = torch.empty(filled.shape, dtype=filled.dtype, pin_memory=True)
            squares.copy_(filled, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(filled.device))
        else:
            squares = filled.clone()
        self._travelling.append(PassBlock(self.passes_closed - self._in_ring, squares, arrived))
        self._in_ring = 0

    def receive(self, *, wait: bool) -> list[PassBlock]:
        """The blocks that have arrived, in order; with `wait`, all that were sent."""
        blocks = []
        while self._travelling and (wait or self._travelling[0].ready()):
            block = self._travelling.popleft()
            block.wait()
            blocks.append(block)
        return blocks
