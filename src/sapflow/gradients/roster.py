"""Who is measured: the watched modules by name, in the order they were attached, each with its probe and its row."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.gradients.cells import Row
from sapflow.gradients.origin import Place
from sapflow.gradients.pass_sums import PassSums, expected_device
from sapflow.gradients.probe import Probe
from sapflow.gradients.reading import Watched
from sapflow.gradients.vitals import Vitals


class Roster(Mapping[str, Watched]):
    """The watched modules; those that leave give their rows back when the epoch is over that these have passes in.

    Args:
        sums: where their rows are.
    """

    def __init__(self, sums: PassSums) -> None:
        self._sums = sums
        self._watched: dict[str, Watched] = {}
        self._retired_rows: list[Row] = []

    def __getitem__(self, name: str) -> Watched:
        return self._watched[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._watched)

    def __len__(self) -> int:
        return len(self._watched)

    def attach(self, name: str, module: nn.Module, memory: Any, *, vitals: bool) -> None:
        """Measure `module` from its next forward on.

        Raises:
            InputError: the name is taken.
        """
        if name in self._watched:
            raise InputError(f"the name {name!r} is being measured already: detach it first, or choose another")
        row = self._sums.take_row(expected_device(module))
        probe = Probe(module, self._sums, row)
        self._watched[name] = Watched(module, probe, row, memory, Vitals(module) if vitals else None)

    def detach(self, name: str) -> None:
        """Stop measuring a module and leave nothing on it."""
        watched = self._watched.pop(name)
        self._retired_rows.append(watched.row)
        watched.probe.remove()

    def only(self, name: str) -> AbstractContextManager[None]:
        """Let one module's probe listen and no other."""
        return muted(watched.probe for other, watched in self._watched.items() if other != name)

    def rows(self) -> dict[str, int]:
        """The row of each."""
        return {name: watched.row.index for name, watched in self._watched.items()}

    def places(self) -> list[Place]:
        """Each as the search for an origin wants to know it."""
        return [Place(name, watched.module, watched.row.index) for name, watched in self._watched.items()]

    def vitals(self) -> list[Vitals]:
        """Of those whose parameters are asked for."""
        return [watched.vitals for watched in self._watched.values() if watched.vitals is not None]

    def vital_numbers(self) -> dict[str, Tensor]:
        """What `Vitals.numbers` gives, of each that has vital signs; waits for the device."""
        return {name: one.vitals.numbers() for name, one in self._watched.items() if one.vitals is not None}

    def end_pass(self, *, look: bool) -> None:
        """A pass has ended; `look` at whether it reached the parameters, which takes a while."""
        self.forget_open_calls()
        if look:
            for watched in self._watched.values():
                watched.probe.end_pass()

    def forget_open_calls(self) -> None:
        """Of forwards that raised: what they hold is the graph in front of them."""
        probes = [watched.probe for watched in self._watched.values() if watched.probe.open_calls]
        # In autograd's own threads, where checkpoints run forward on a GPU, nothing runs between two backwards.
        running = sys._current_frames().keys() - {get_ident()} if probes else ()
        for probe in probes:
            probe.forget_open_calls(running)

    def begin_epoch(self) -> None:
        """Forget what was noted of the epoch before."""
        while self._retired_rows:
            self._sums.give_back(self._retired_rows.pop())
        for watched in self._watched.values():
            watched.probe.begin_epoch()
            if watched.vitals is not None:
                watched.vitals.begin_epoch()


@contextmanager
def muted(probes: Iterable[Probe]) -> Iterator[None]:
    """Inside, these probes do not listen."""
    listening = [probe for probe in probes if not probe.muted]
    for probe in listening:
        probe.muted = True
    try:
        yield
    finally:
        for probe in listening:
            probe.muted = False


def probes_on(model: nn.Module) -> Iterator[Probe]:
    """Those of every monitor that measures a module of the model."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(probe := getattr(hook, "__self__", None), Probe):
                yield probe
