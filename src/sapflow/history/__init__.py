"""LOOK BACK: runs as data, for the researcher afterwards. No torch; pyarrow and duckdb are the extra `history`."""
