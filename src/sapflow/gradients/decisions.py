"""The passes that are decided on: since the last decision, and since the epoch began, on all ranks together."""

from collections.abc import Collection, Mapping

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
        self._window = EpochSums(0)
        self._epoch = EpochSums(0)

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
        self._window = self._window.following(sums.rows, rows.values())
        if sums.rows > self._epoch.rows:
            self._epoch.grow(sums.rows)
        for block in blocks:
            self._window.add(block)
            self._epoch.add(block)
        return self._window, vitals

    def end_epoch(self, own: EpochSums, measured: Collection[int]) -> EpochSums:
        """All passes of the epoch; `own` are this rank's, which nothing else was kept of where they are enough.

        Of the rows that are not `measured` any more, which others may get, nothing goes on.
        """
        decided = self._epoch
        self._window = self._window.following(self._window.rows, measured)
        self._epoch = decided.following(decided.rows, measured)
        return decided if self._keeps else own
