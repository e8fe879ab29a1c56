"""The sums on the device: one row a probe, a ring of closed passes, and copies that nobody waits for.

A backward pass only adds into cells; closing it copies them into the ring with one kernel and resets them with
another. Everything else (minimum, histogram, non-finite passes …) is derived on the host from the ring's rows, which
travel there in one copy a drain.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sapflow.gradients.cells import ENTERING, NEVER_FIRED, PAGE_ROWS, TAKEN, Page, Row, fired_cells

if TYPE_CHECKING:
    from sapflow.gradients.ranks import Ranks

# The square of the least norm (1e-19) that float32 holds with all of its digits; what enters below it is as good as 0.
SMALLEST = torch.finfo(torch.float32).tiny
# What a cell holds at most.
LARGEST = torch.finfo(torch.float32).max


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
        self.total = 0.0  # of all that the backward that runs added on the CPU
        self.passes_closed = 0  # since the epoch began
        self.passes_measured = 0  # of these, those that probes listened to
        self.ranks = ranks
        self._loss_scale = loss_scale
        self._on_non_finite = on_non_finite
        self._scale_ring: Tensor | None = None
        # Of the gradient that was measured last: itself, its version, and its norm, a number where nobody has to wait
        # for one. It is not kept alive, which would keep its memory from being used again.
        self.last_norm: tuple[Callable[[], Tensor | None], int, Tensor | float] = (lambda: None, 0, 0.0)
        self._pages: list[Page] = []
        self._on_host = True  # all of them, so that nothing is to be waited for
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

    def any_nan(self) -> bool:
        """Whether any cell of the open pass is NaN; waits for the device."""
        return any(bool(page.cells.isnan().any()) for page in self._pages)

    def take_row(self, device: torch.device) -> Row:
        """A row for a probe whose gradients are expected on `device`."""
        for position, row in enumerate(self._free):
            if row.cells[0].device == device:
                del self._free[position]
                for cells in (*row.cells, row.activations):
                    cells.fill_(NEVER_FIRED)
                return row
        for page in self._pages:
            if page.cells.device == device and len(page.rows) < PAGE_ROWS:
                return page.new_row()
        self.send()  # blocks have as many rows as there were when their passes were closed
        page = Page(self.rows, self.ring_passes, self.columns, device)
        self._pages.append(page)
        self._on_host &= page.memory is not None
        return page.new_row()

    def give_back(self, row: Row) -> None:
        """Let another probe have the row; not before the epoch is over that it has passes in."""
        self._free.append(row)

    def add(self, row: Row, column: int, norm: Tensor | float) -> None:
        """Add the square of a norm to a cell, wherever both are: two operations, no synchronisation."""
        if isinstance(norm, float):
            row.cells[column].add_(norm * norm)
            return
        page = self._pages[row.index // PAGE_ROWS]
        if page.memory is not None and norm.device.type != "cpu":  # the model was moved after it was attached
            self.send()
            page.move(norm.device)
            self._on_host = False
        cell = row.cells[column]
        norm = norm.to(cell.device, non_blocking=True)
        cell.addcmul_(norm, norm)

    def begin_backward(self) -> None:
        """Arrange for a look at the sums when the backward that runs now is over."""
        self.fired = self.in_backward = True
        if self._on_host:
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def close_pass(self) -> None:
        """End the open pass: two kernels a page, no synchronisation."""
        self.in_backward = False
        if not self.paused:
            self.passes_measured += 1
            for page in self._pages:
                page.close(len(self._in_ring))
            self._note_scale()
            self._in_ring.append(self.passes_closed)
        self.passes_closed += 1
        self.fired = self.skipped = False
        if len(self._in_ring) == self.ring_passes:
            self.send()

    def drop_pass(self) -> None:
        """Forget the open pass."""
        self.in_backward = False
        for page in self._pages:
            page.begin_again()
        self.fired = self.skipped = False

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
        unseen = self.compiled or self.sees_activations  # what was added to cells without being counted in the total
        if not self.total < LARGEST or (unseen and not all(page.finite() for page in self._pages)):
            self._on_non_finite()
        self.total = 0.0

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
    """Where the module's gradients will be, as far as it can be told before it runs, or has any memory (meta)."""
    devices = [tensor.device for tensor in (*module.parameters(), *module.buffers())]
    devices += [torch.get_default_device(), torch.device("cpu")]
    return next(device for device in devices if device.type != "meta")
