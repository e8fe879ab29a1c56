"""Checkpoints of a run: whole or not there, the last two of them, and read as the files of strangers."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sapflow.telemetry.run_directory import CHECKPOINTS_NAME

log = logging.getLogger("sapflow.training")

MAGIC = b"SAPFLOW-CHECKPOINT-1"
UNFINISHED = "unfinished.tmp"  # one name, so that what a killed trainer left is written over
DIGEST_BYTES = hashlib.sha256().digest_size
KEPT = 2
MAX_BYTES = 8 * 2**30

State = dict[str, Any]


class Checkpoints:
    """The checkpoints in a run directory, a file an epoch: magic, SHA-256, and what torch.save made of the state.

    Args:
        run_dir: of the run.
        every: epochs from one to the next; 0 writes none.
    """

    def __init__(self, run_dir: Path, every: int = 1) -> None:
        self.folder = run_dir / CHECKPOINTS_NAME
        self.every = every
        self._failed = False

    def write(self, epoch: int, state: State) -> None:
        """Keep the state after `epoch`, if it is one to keep. What fails is logged once: training goes on."""
        if not self.every or epoch % self.every:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            torch.save(state, buffer)
            _write_whole(self.folder / f"epoch-{epoch:07d}.pt", buffer.getvalue())
            self._tidy(epoch)
        except OSError as error:
            if not self._failed:
                log.error("cannot write a checkpoint into %s (%s); training goes on without", self.folder, error)
            self._failed = True

    def newest_first(self) -> Iterator[tuple[int, State]]:
        """Epoch and state of each checkpoint that is whole; of one that is not, a line in the log."""
        for epoch, path in self._files():
            try:
                yield epoch, _read(path)
            except Exception as error:  # a stranger's file may fail in any way
                reason = " ".join(str(error).split())[:200]
                log.warning("checkpoint %s cannot be used (%s): the one before it is asked", path, reason)

    def _tidy(self, epoch: int) -> None:
        """Leave the last ones up to `epoch`: what is ahead of it could not be used."""
        files = self._files()
        kept = [path for number, path in files if number <= epoch][:KEPT]
        for _, path in files:
            if path not in kept:
                path.unlink()

    def _files(self) -> list[tuple[int, Path]]:
        found = [(re.fullmatch(r"epoch-(\d{7,18})\.pt", path.name), path) for path in self.folder.glob("epoch-*.pt")]
        return sorted(((int(name[1]), path) for name, path in found if name), reverse=True)


def _write_whole(path: Path, payload: bytes) -> None:
    """Under its name it is whole and on the disk, or not there."""
    unfinished = path.with_name(UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)  # it would fill a full disk
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> State:
    """Raises ValueError, or what torch.load does: the file is damaged, or something else."""
    size = path.stat().st_size
    if not len(MAGIC) + DIGEST_BYTES < size <= MAX_BYTES:
        raise ValueError(f"it has {size} bytes")
    content = path.read_bytes()
    header, payload = content[: len(MAGIC) + DIGEST_BYTES], content[len(MAGIC) + DIGEST_BYTES :]
    if header != MAGIC + hashlib.sha256(payload).digest():
        raise ValueError("it is damaged")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state
