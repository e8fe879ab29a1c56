"""The passes that are decided on: since the last decision, and since the epoch began, on all ranks together."""

from collections.abc import Mapping

from torch import Tensor

from sapflow.gradients.epoch_sums import EpochSums
from sapflow.gradients.pass_sums import PassSums
from sapflow.gradients.ranks import Ranks


class Decisions:
    """Keeps closed passes until they are decided on, where the epoch's own sums are not enough.

    Args:
        ranks: meet at every decision.
        windows: there are decisions within an epoch.
    """

    def __init__(self, ranks: Ranks, *, windows: bool) -> None:
        self._ranks = ranks
        self._keeps = ranks.together or windows
        self._undecided: list[Tensor] = []
        self._epoch: EpochSums | None = None

    def keep(self, squares: Tensor) -> None:
        """Closed passes of this rank, float64 (passes, rows, columns)."""
        if self._keeps:
            self._undecided.append(squares)

    def take(
        self, sums: PassSums, rows: Mapping[str, int], vitals: dict[str, Tensor]
    ) -> tuple[EpochSums, dict[str, Tensor]]:
        """The passes since the last decision, and the parameters' numbers: of all ranks, where they train together."""
        blocks, self._undecided = self._undecided, []
        if self._ranks.together:
            blocks, vitals = self._ranks.combine(blocks, sums.rows, sums.columns, vitals, rows, sums.home)
        window = EpochSums(sums.rows)
        if self._epoch is None:
            self._epoch = EpochSums(sums.rows)
        elif sums.rows > self._epoch.rows:
            self._epoch.grow(sums.rows)
        for block in blocks:
            window.add(block)
            self._epoch.add(block)
        return window, vitals

    def end_epoch(self, own: EpochSums) -> EpochSums:
        """All passes of the epoch; `own` are this rank's, which nothing else was kept of where they are enough."""
        decided, self._epoch = self._epoch, None
        return decided if self._keeps and decided is not None else own
