"""Whether two streams of rows are the same, to the bit of every NaN; neither is ever held whole."""

from collections.abc import Iterable, Iterator

from sapflow.history.arrow import pa, pc


def same_rows(ours: Iterable[pa.RecordBatch], theirs: Iterable[pa.RecordBatch]) -> bool:
    """Whether both have the same rows in the same order, however they are cut into batches."""
    left, right = _Pieces(ours), _Pieces(theirs)
    while True:
        count = min(left.ready(), right.ready())
        if count == 0:
            return left.ready() == right.ready()
        if not _same(left.take(count), right.take(count)):
            return False


class _Pieces:
    """Batches that can be taken in pieces."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches: Iterator[pa.RecordBatch] = (batch for batch in batches if batch.num_rows)
        self._rest: pa.RecordBatch | None = None

    def ready(self) -> int:
        """How many rows can be taken at once; 0 at the end."""
        if self._rest is None or self._rest.num_rows == 0:
            self._rest = next(self._batches, None)
        return 0 if self._rest is None else self._rest.num_rows

    def take(self, count: int) -> pa.RecordBatch:
        assert self._rest is not None
        piece, self._rest = self._rest.slice(0, count), self._rest.slice(count)
        return piece


def _same(ours: pa.RecordBatch, theirs: pa.RecordBatch) -> bool:
    return ours.schema.equals(theirs.schema) and all(
        _bits(left).equals(_bits(right)) for left, right in zip(ours.columns, theirs.columns, strict=True)
    )


def _bits(array: pa.Array) -> pa.Array:
    """An array that is equal to another where their bits are: NaN is equal to no NaN."""
    if not pa.types.is_float64(array.type):
        return array
    bits = array.view(pa.int64())
    return pc.if_else(array.is_valid(), bits, pa.scalar(None, pa.int64()))
