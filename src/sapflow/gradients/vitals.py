"""Whether the parameters of a module are alive: reached by gradients, and moved by training.

Noted on few passes (`vitals_due`), so that the others pay nothing. Nothing synchronises before `numbers` are asked for,
and nothing communicates: of what ranks hold together, each counts its part.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from sapflow.gradients.cells import TAKEN
from sapflow.gradients.norms import numbers_of
from sapflow.gradients.parts import held_part
from sapflow.gradients.pass_sums import PassSums

VITALS_EVERY = 64
# A parameter tensor is alive when the norm of its gradient exceeds this share of the largest among all watched ones.
ALIVE_SHARE = 1e-4

log = logging.getLogger("sapflow.gradients")


def vitals_due(passes: int, age: int) -> bool:
    """Whether a pass is one to note vital signs on: one of VITALS_EVERY, and more of them while a module is young.

    Args:
        passes: measured in the epoch before it.
        age: passes measured since a module was attached.
    """
    return passes % VITALS_EVERY == 0 or (age < VITALS_EVERY and age & (age - 1) == 0)


class Vitals:
    """What is known of the trainable parameters of one module, whichever they are at the time."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._versions = WeakTensorKeyDictionary()  # of each parameter, when it was first seen
        self._has_moved = False
        self._first_weights: Tensor | None = None  # norms of the parameters; some optimizers count no version up
        self._last_weights: Tensor | None = None
        self.look_whether_moved()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self.norms: Tensor | None = None  # of the gradients of the parameters, when last seen
        self.seen: Tensor | bool = False  # whether these tell anything
        self.failure = ""  # why they could not be seen

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained now: others than before, where some were frozen, replaced, or made (lazy modules)."""
        return [p for p in self._module.parameters() if p.requires_grad and not is_lazy(p)]

    def numbers(self) -> Tensor:
        """What the vital signs of the epoch so far follow from (`signs_of`); waits for the device.

        float64 (2 + parameters,): whether parameters moved, whether gradients were seen, and the squares of the
        gradients' norms. Those of several ranks add up.
        """
        norms = torch.zeros(len(self.parameters())) if self.norms is None else self.norms
        self.look_whether_moved()
        first, last = self._first_weights, self._last_weights
        if first is not None and last is not None:
            self._has_moved |= not torch.equal(first.cpu(), last.cpu())
        flags = torch.tensor([self._has_moved, bool(self.seen)], dtype=torch.float64)
        return torch.cat((flags, norms.cpu().double().square()))

    def look_whether_moved(self) -> bool:
        """Whether any parameter has changed since it was first seen, as far as that is known without its values."""
        if not self._has_moved:
            self._has_moved = any(p._version != self._versions.setdefault(p, p._version) for p in self.parameters())
        return self._has_moved

    def note_weights(self, norms: Tensor) -> None:
        """Take the norms of the parameters, as they are now, for what they are known by."""
        if self._first_weights is None or len(self._first_weights) != len(norms):
            self._first_weights = norms
        self._last_weights = norms


class VitalSigns(NamedTuple):
    """Vital signs of a module over an epoch, each None where it was not measured; as in `health.policy.Reading`."""

    parameter_liveness: float | None = None
    parameters_moved: bool | None = None


def signs_of(numbers: Mapping[str, Tensor]) -> dict[str, VitalSigns]:
    """The vital signs of each module from what `Vitals.numbers` gave, of all modules that are watched."""
    squares = torch.cat([of_one[2:] for of_one in numbers.values()]) if numbers else torch.zeros(0)
    largest = squares[squares.isfinite()].max() if squares.isfinite().any() else 0.0
    signs = {}
    for name, of_one in numbers.items():
        moved, seen = of_one[:2].tolist()
        # What is not finite is no gradient worth the name, but it is not dead.
        alive = (of_one[2:] > ALIVE_SHARE**2 * largest) | of_one[2:].isnan()
        trained = len(alive) > 0
        liveness = float(alive.double().mean()) if trained and seen else None
        signs[name] = VitalSigns(liveness, moved > 0 if trained else None)
    return signs


def note_liveness(vitals: Iterable[Vitals], *, after_step: bool) -> None:
    """Note the norms of each module's gradients, on the device; of those that ranks hold together, this one's part.

    Gradients must still stand on the parameters, as they do right after an optimizer's step; later a loop may have
    zeroed them, and where all are 0 they tell nothing. Of a module none of whose parameters has one (an expert that
    nothing was routed to) nothing is noted; beside others, one without is dead.
    """
    gradients = {vital: [_numbers(parameter.grad) for parameter in vital.parameters()] for vital in vitals}
    reached = {vital: parts for vital, parts in gradients.items() if any(part is not None for part in parts)}
    noted = list(_aligned(reached))
    tell: Tensor | bool = True if after_step or not noted else torch.cat([norms for _, norms in noted]).any()
    for vital, norms in noted:
        vital.norms, vital.seen = norms, tell


def note_weights(vitals: Iterable[Vitals]) -> None:
    """Note the norms of parameters that have not moved, as their versions tell, to see whether they have all the same.

    An optimizer that counts versions up has moved them before the first look at them costs anything.
    """
    still = [vital for vital in vitals if not vital.look_whether_moved()]
    weights = {vital: [_numbers(parameter) for parameter in vital.parameters()] for vital in still}
    for vital, norms in _aligned({vital: parts for vital, parts in weights.items() if parts}):
        vital.note_weights(norms)


def _aligned(parts: Mapping[Vitals, list[Tensor | None]]) -> Iterable[tuple[Vitals, Tensor]]:
    """The norms of each one's tensors, fp32, on one device; 0 where there is none."""
    there = {id(part): part for of_one in parts.values() for part in of_one if part is not None}
    if not there:
        return ()
    norms = _norms(there)
    none = torch.zeros_like(next(iter(norms.values())))
    of_all = torch.stack([none if part is None else norms[id(part)] for of_one in parts.values() for part in of_one])
    return zip(parts, of_all.split([len(of_one) for of_one in parts.values()]), strict=True)


def _numbers(tensor: Tensor | None) -> Tensor | None:
    """Those that this rank holds, if it does."""
    if tensor is None:
        return None
    part = held_part(tensor.detach() if tensor.requires_grad else tensor)
    return None if part is None else numbers_of(part)


def _norms(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Of each its norm, fp32, on the device of the first."""
    kinds: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        kinds.setdefault((tensor.device, tensor.dtype), {})[key] = tensor
    home, _ = next(iter(kinds))
    norms: dict[int, Tensor] = {}
    for (device, dtype), of_kind in kinds.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        of_each = torch._foreach_norm(list(of_kind.values()), dtype=wide)
        if device != home or wide != torch.float32:
            of_each = torch.stack(of_each).to(home, torch.float32).unbind()
        norms.update(zip(of_kind, of_each, strict=True))
    return norms


class Rounds:
    """Which passes show the vital signs: the parameters' gradients, and the activations.

    Args:
        sums: counts the passes, and is told of whether the open one shows its activations.
    """

    def __init__(self, sums: PassSums) -> None:
        self._sums = sums
        self._age = 0  # passes since a module was attached
        self._due = False
        self._failed = False

    def begin_young(self) -> None:
        """A module was attached."""
        self._age = 0
        self.choose()

    def choose(self, *, window_begins: bool = False) -> None:
        """Whether the next pass is one."""
        self._due = window_begins or vitals_due(self._sums.passes_measured, self._age)
        due = self._sums.every_activation or self._due
        self._sums.sees_activations = due and self._sums.columns > TAKEN

    def end_pass(self, vitals: Callable[[], Iterable[Vitals]], *, after_step: bool) -> None:
        """Note the gradients of a pass that ends, if it is one; what fails is said, not raised into training."""
        if self._sums.paused:
            return
        self._age += 1
        if not self._due:
            return
        watched = list(vitals())
        try:
            note_liveness(watched, after_step=after_step)
            note_weights(watched)
        except Exception as error:
            for vital in watched:
                vital.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            if not self._failed:
                log.exception("whether parameters are alive cannot be told; training goes on")
            self._failed = True
