"""What makes a run the same again: random streams that do not disturb each other, and sums in one order."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


def stream_seed(*names: object) -> int:
    """A seed in [0, 2**63) that the names determine, the same on every machine and version."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class RandomState:
    """Where torch's default generators stand, on the CPU and on every CUDA device in use."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def capture(cls) -> "RandomState":
        """The state at this moment."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), cuda)

    @classmethod
    def seeded(cls, seed: int) -> "RandomState":
        """The state right after `torch.manual_seed(seed)`, without leaving it so."""
        before = cls.capture()
        torch.manual_seed(seed)
        state = cls.capture()
        before.restore()
        return state

    def restore(self) -> None:
        """Put the generators there."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the generators run from this state; afterwards they stand where they stood before."""
        before = RandomState.capture()
        self.restore()
        try:
            yield
        finally:
            before.restore()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Inside, torch computes in one thread: the sums of a parallel kernel depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
