"""pyarrow, or what to install: every module of this room that needs it takes it from here."""

from sapflow.errors import MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.dataset as ds
    import pyarrow.fs as pa_fs
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("the history of runs", "history") from error

__all__ = ["ds", "pa", "pa_csv", "pa_fs", "pc", "pq"]
