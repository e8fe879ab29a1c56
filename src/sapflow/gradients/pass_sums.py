"""The sums on the device: one row a probe, a ring of closed passes, and copies that nobody waits for.

A backward pass only adds into cells; closing it copies them into the ring with one kernel and resets them with
another. Everything else (minimum, histogram, non-finite passes …) is derived on the host from the ring's rows, which
travel there in one copy a drain.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ref

import torch
from torch import Tensor, nn

from sapflow.gradients.norms import norm_of

if TYPE_CHECKING:
    from sapflow.gradients.ranks import Ranks

# Columns: squared gradient norms at output and input and, where asked for, mean squares of inputs and outputs.
ENTERING, LEAVING, TAKEN, GIVEN = 0, 1, 2, 3
# Cells start at −0.0: adding anything, even 0.0, gives +0.0 or more, so the sign tells "never fired" from "zero".
NEVER_FIRED = -0.0
# The square of the least norm (1e-19) that float32 holds with all of its digits; what enters below it is as good as 0.
SMALLEST = torch.finfo(torch.float32).tiny
# Rows that are allocated, moved and closed together.
PAGE_ROWS = 16


class Row:
    """A probe's place in the sums: its index, and its cells, each 0-dimensional.

    Compiled code keeps the cells of the call that it was entered by, so a cell changes its memory only when a model
    changes its device.
    """

    def __init__(self, index: int, cells: Tensor) -> None:
        self.index = index
        self.bind(cells)

    def bind(self, cells: Tensor) -> None:
        """Take over cells of shape (columns,)."""
        # `data` gives each its own version counter: adding to one is no change of the others to autograd.
        self.cells = tuple(cell.data for cell in cells)


class _Page:
    """PAGE_ROWS rows on one device: cells of shape (rows, columns), and a ring (passes, rows, columns) of them."""

    def __init__(self, ring_passes: int, columns: int, device: torch.device) -> None:
        self.cells = torch.full((PAGE_ROWS, columns), NEVER_FIRED, dtype=torch.float32, device=device)
        self.ring = self.cells.expand(ring_passes, -1, -1).clone()
        self.rows: list[Row] = []

    def move(self, device: torch.device) -> None:
        self.cells, self.ring = self.cells.to(device), torch.empty_like(self.ring, device=device)
        for row in self.rows:
            row.bind(self.cells[row.index % PAGE_ROWS])


@dataclass(frozen=True)
class PassBlock:
    """Closed passes on their way to the host, page by page, and the loss scale of each, if there was one."""

    pass_index: tuple[int, ...]
    pages: list[Tensor]
    scales: Tensor | None
    arrivals: list[torch.cuda.Event]

    def ready(self) -> bool:
        """Whether the copies have arrived; asks, never waits."""
        return all(arrival.query() for arrival in self.arrivals)

    def squares(self) -> Tensor:
        """Squares of shape (passes, rows, columns), float64, free of the loss scale; waits for the copies."""
        for arrival in self.arrivals:
            arrival.synchronize()
        squares = torch.cat(self.pages, dim=1).double()
        entering = squares[..., ENTERING]
        entering[(entering > 0) & (entering < SMALLEST)] = 0.0
        return squares if self.scales is None else squares / self.scales.double().square().view(-1, 1, 1)


def fired_cells(squares: Tensor) -> Tensor:
    """Which cells any gradient reached: all but those that still hold −0.0 (a NaN's sign means nothing)."""
    return ~((squares == 0) & squares.signbit())


class PassSums:
    """Squared norms of the pass that is open, and of the last closed ones; 4 bytes a column, row and pass.

    Args:
        ring_passes: closed passes that wait on the device for one copy to the host.
        columns: 2 for gradients, 4 with activations.
        loss_scale: gives the scale of the loss in the open pass (0-dimensional, on any device), None if there is none.
        on_non_finite: called at the end of a backward that leaves non-finite squares, where that is known without
            waiting: on the CPU.
        every_activation: the activations of every pass are asked for, whole.
        ranks: those that train the model together, if they are to be measured together.
    """

    def __init__(
        self,
        ring_passes: int,
        columns: int,
        loss_scale: Callable[[], Tensor | None],
        on_non_finite: Callable[[], None],
        *,
        every_activation: bool = False,
        ranks: "Ranks | None" = None,
    ) -> None:
        self.ring_passes = ring_passes
        self.columns = columns
        # Since the last closing …
        self.fired = False  # … something was added by code that is not compiled
        self.skipped = False  # … a module ran forward that was not listened to
        self.paused = False  # probes do not listen
        self.every_activation = every_activation
        self.sees_activations = columns > TAKEN  # in the pass that is open
        self.compiled = False  # there is code that adds and cannot say so
        self.in_backward = False  # and what is at its end is arranged for
        self.passes_closed = 0  # since the epoch began
        self.passes_measured = 0  # of these, those that probes listened to
        self.ranks = ranks
        self._loss_scale = loss_scale
        self._on_non_finite = on_non_finite
        self._scale_ring: Tensor | None = None
        self._last_norm: tuple[Callable[[], Tensor | None], int, Tensor] = (lambda: None, 0, torch.empty(()))
        self._pages: list[_Page] = []
        self._free: list[Row] = []
        self._in_ring: list[int] = []  # indices of the passes in the ring
        self._travelling: deque[PassBlock] = deque()

    @property
    def rows(self) -> int:
        """The rows that blocks have from now on."""
        return PAGE_ROWS * len(self._pages)

    @property
    def open(self) -> bool:
        """Whether there may have been a backward since the last closing."""
        return self.fired or self.skipped or self.compiled

    @property
    def home(self) -> torch.device:
        """Where the sums live."""
        return self._pages[0].cells.device if self._pages else torch.device("cpu")

    def anything_added(self) -> bool:
        """Whether there was a backward since the last closing; waits for the device."""
        return any(bool(fired_cells(page.cells).any()) for page in self._pages)

    def take_row(self, device: torch.device) -> Row:
        """A row for a probe whose gradients are expected on `device`."""
        for position, row in enumerate(self._free):
            if row.cells[0].device == device:
                del self._free[position]
                for cell in row.cells:
                    cell.fill_(NEVER_FIRED)
                return row
        self.send()  # blocks have as many rows as there were when their passes were closed
        page = _Page(self.ring_passes, self.columns, device)
        first = self.rows
        page.rows = [Row(first + position, cells) for position, cells in enumerate(page.cells)]
        self._pages.append(page)
        self._free += page.rows
        return self.take_row(device)

    def give_back(self, row: Row) -> None:
        """Let another probe have the row; not before the epoch is over that it has passes in."""
        self._free.append(row)

    def meet(self, row: Row, column: int, norm: Tensor) -> tuple[Tensor, Tensor]:
        """A norm and its cell on one device: a model that was moved after it was attached takes its page along."""
        page = self._pages[row.index // PAGE_ROWS]
        if page.cells.device.type == "cpu":
            self.send()
            page.move(norm.device)
        cell = row.cells[column]
        return norm.to(cell.device, non_blocking=True), cell

    def norm_of(self, gradient: Tensor) -> Tensor:
        """The norm of a gradient; what leaves a module often enters the one before it, and is measured once."""
        known, version, norm = self._last_norm
        if known() is gradient and version == gradient._version:
            return norm
        norm = norm_of(gradient)
        self._last_norm = ref(gradient), gradient._version, norm  # alive, it would be kept from being reused
        return norm

    def begin_backward(self) -> None:
        """Arrange for a look at the sums when the backward that runs now is over."""
        self.in_backward = True
        if all(page.cells.device.type == "cpu" for page in self._pages):
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def close_pass(self) -> None:
        """End the open pass: two kernels a page, no synchronisation."""
        self.in_backward = False
        if not self.paused:
            self.passes_measured += 1
            for page in self._pages:
                page.ring[len(self._in_ring)].copy_(page.cells)
                page.cells.fill_(NEVER_FIRED)
            self._note_scale()
            self._in_ring.append(self.passes_closed)
        self.passes_closed += 1
        self.fired = self.skipped = False
        if len(self._in_ring) == self.ring_passes:
            self.send()

    def send(self) -> None:
        """Let the closed passes set out for the host; on CUDA into pinned memory, behind the kernels that fill them."""
        if not self._in_ring:
            return
        passes = len(self._in_ring)
        arrivals: list[torch.cuda.Event] = []
        pages = [_sent(page.ring[:passes], arrivals) for page in self._pages]
        scales = None if self._scale_ring is None else _sent(self._scale_ring[:passes], arrivals)
        self._travelling.append(PassBlock(tuple(self._in_ring), pages, scales, arrivals))
        self._in_ring = []

    def receive(self, *, wait: bool) -> list[PassBlock]:
        """The blocks that have arrived, in order; with `wait`, all that were sent, arrived or not."""
        blocks = []
        while self._travelling and (wait or self._travelling[0].ready()):
            blocks.append(self._travelling.popleft())
        return blocks

    def _end_backward(self) -> None:
        self.in_backward = False
        # On the CPU there is nothing to wait for; a sum is the cheapest test, and an overflow of it does no harm.
        if not all(math.isfinite(float(page.cells.sum())) for page in self._pages):
            self._on_non_finite()

    def _note_scale(self) -> None:
        scale = self._loss_scale()
        if scale is None:
            return
        if self._scale_ring is None:
            self._scale_ring = torch.ones(self.ring_passes, dtype=torch.float32, device=scale.device)
        self._scale_ring[len(self._in_ring)].copy_(scale)


def _sent(filled: Tensor, arrivals: list[torch.cuda.Event]) -> Tensor:
    """A copy on the host, or on its way there."""
    if not filled.is_cuda:
        return filled.to("cpu", copy=True)
    copy = torch.empty(filled.shape, dtype=filled.dtype, pin_memory=True)
    copy.copy_(filled, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record(torch.cuda.current_stream(filled.device))
    arrivals.append(arrival)
    return copy


def expected_device(module: nn.Module) -> torch.device:
    """Where the module's gradients will be, as far as it can be told before it runs."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.get_default_device()
