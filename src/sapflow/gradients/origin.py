"""Where NaN was born: the first module that a finite gradient enters and a non-finite one leaves, and its parameter.

Nothing is added to a pass for it: the squares that are measured anyway tell which passes are not finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from sapflow.gradients.cells import ENTERING, GIVEN, LEAVING, TAKEN, fired_cells
from sapflow.gradients.norms import numbers_of
from sapflow.gradients.parts import held_part

OUTSIDE = ""


@dataclass(frozen=True)
class Origin:
    """The birth of a non-finite value: in a module, or OUTSIDE of all that are watched.

    `pass_index` counts passes from 0 within the epoch, `passes` those from the monitor's start, this one included;
    `parameter` is the first of the module's parameters, in the order of the backward pass, that got a non-finite
    gradient ("" where none did, or where that cannot be told any more).
    """

    module: str
    pass_index: int
    passes: int
    parameter: str
    in_forward: bool
    text: str


@dataclass(frozen=True)
class Place:
    """A watched module, and its row in the sums."""

    name: str
    module: nn.Module
    row: int


class Glance(NamedTuple):
    """The first of a module's parameters whose gradient is not finite, and the first that is not finite itself."""

    gradient: str
    value: str


class OriginSearch:
    """Follows the passes, and tells the origin of each run of non-finite ones, once.

    Args:
        patience: the pass of a run that is told of: the first; where a loss scale makes single overflows normal, later.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._run = 0  # non-finite passes in a row, among those followed
        self._glanced_run = 0  # likewise, among those glanced at …
        self._glanced_last = 0  # … up to the pass of this number
        self._glances: dict[int, dict[str, Glance]] = {}  # by pass and module, from before anybody clipped

    def glance(self, passes: int, places: list[Place], *, any_nan: bool) -> bool:
        """Look at the parameters as they stand at the end of a non-finite backward; whether it may be one to tell.

        Where no square is NaN and no gradient of a parameter is bad, only squares have overflowed: that is no run.
        """
        if passes > self._glanced_last + 1:
            self._glanced_run = 0
        fresh = passes != self._glanced_last
        if self._glanced_run + fresh <= self.patience:
            self._glances[passes] = _glances(places)
            if not any_nan and not any(glance.gradient for glance in self._glances[passes].values()):
                return False
        self._glanced_last = passes
        self._glanced_run += fresh
        return self._glanced_run <= self.patience

    def follow(
        self, squares: Tensor, pass_numbers: Sequence[tuple[int, int]], places: list[Place], closed: int
    ) -> list[Origin]:
        """Hear of the next passes, squares of shape (passes, rows, columns); the origins of those that are to be told.

        Args:
            squares: of the passes.
            pass_numbers: `pass_index` and `passes` of each, as `Origin` has them.
            places: what is watched.
            closed: how many passes were, ever: the last one's gradients, clipped or not, stand on the parameters.
        """
        if bool(squares.isfinite().all()):
            self._run = 0
            self._glances = {number: of_it for number, of_it in self._glances.items() if number > pass_numbers[-1][1]}
            return []
        origins = [
            self._follow_one(of_pass, pass_index, passes, places, gradients_stand=passes == closed)
            for of_pass, (pass_index, passes) in zip(squares, pass_numbers, strict=True)
        ]
        return [origin for origin in origins if origin is not None]

    def _follow_one(
        self, squares: Tensor, pass_index: int, passes: int, places: list[Place], *, gradients_stand: bool
    ) -> Origin | None:
        glances = self._glances.pop(passes, None)
        if not any(_bad(squares, place) for place in places):
            self._run = 0
            return None
        if glances is not None and _overflowed(squares, glances):
            self._run = 0
            return None
        self._run += 1
        if self._run != self.patience:
            return None
        if glances is None:
            glances = _unclipped(squares, places) if gradients_stand else {}
        name, in_forward, words = _birth(squares, places, glances)
        parameter = glances[name].gradient or glances[name].value if name in glances and not in_forward else ""
        first = f"; the first parameter with a non-finite gradient: {parameter}" if parameter else ""
        return Origin(name, pass_index, passes, parameter, in_forward, f"born in pass {passes} {words}{first}")


def _bad(squares: Tensor, place: Place) -> bool:
    return not bool(squares[place.row].isfinite().all())


def _glances(places: list[Place]) -> dict[str, Glance]:
    glances = {}
    for place in places:
        parameters = dict(place.module.named_parameters())
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        glances[place.name] = Glance(_first_bad(gradients), _first_bad(parameters))
    return glances


def _first_bad(tensors: Mapping[str, Tensor]) -> str:
    """Of those that are not finite, the one that a backward pass comes to first: the last layer's, its weight."""
    parts = {name: held_part(tensor.detach()) for name, tensor in tensors.items()}  # without a word to other ranks
    bad = [name for name, part in parts.items() if part is not None and not bool(numbers_of(part).isfinite().all())]
    layers = [name.rpartition(".")[0] for name in bad]
    return bad[layers.index(layers[-1])] if bad else ""


def _unclipped(squares: Tensor, places: list[Place]) -> dict[str, Glance]:
    """A late look at the parameters; none if clipping by a norm that is NaN has spoilt every gradient since."""
    glances = _glances(places)
    sound = [place for place in places if not _bad(squares, place)]
    return {} if any(glances[place.name].gradient for place in sound) else glances


def _overflowed(squares: Tensor, glances: Mapping[str, Glance]) -> bool:
    """Whether the gradients are finite, and only their squares are not."""
    return not bool(squares.isnan().any()) and not any(glance.gradient for glance in glances.values())


def _birth(squares: Tensor, places: list[Place], glances: Mapping[str, Glance]) -> tuple[str, bool, str]:
    """The module in which a finite value became non-finite, whether it did so in the forward pass, and the words."""
    finite = squares.isfinite()
    if squares.shape[1] > TAKEN:
        born = _innermost([place for place in places if finite[place.row, TAKEN] and not finite[place.row, GIVEN]])
        if born:
            words = f"in the forward of {born[0].name}: what went in was finite, what came out was not"
            return born[0].name, True, words
        if not all(finite[place.row, TAKEN] for place in places):
            return OUTSIDE, True, "outside of what is watched, in the data or in the forward of modules in between"
    entered = [place for place in places if finite[place.row, ENTERING] and fired_cells(squares[place.row])[ENTERING]]
    born = _innermost([place for place in entered if not finite[place.row, LEAVING]])
    if born:
        words = f"in the backward of {born[-1].name}: a finite gradient entered, a non-finite one left"
        return born[-1].name, False, words
    # Where nothing leaves, as in a first layer, or leaves soundly, the parameters tell.
    born = _innermost([place for place in entered if place.name in glances and glances[place.name].gradient])
    if born:
        return born[-1].name, False, f"in the backward of {born[-1].name}, in its parameters' gradients"
    spoilt = [place for place in places if place.name in glances and glances[place.name].value]
    if spoilt and len(spoilt) < len(places):
        name = _innermost(spoilt)[-1].name
        return name, False, f"or before, in {name}: a parameter of it is not finite since"
    bad = [place.name for place in places if _bad(squares, place)]
    return OUTSIDE, False, f"outside of what is watched, in the loss or in between; it came first to {bad[-1]}"


def _innermost(places: list[Place]) -> list[Place]:
    """Those that contain no other of them."""
    modules = {id(place.module) for place in places}
    return [
        place
        for place in places
        if not any(id(part) in modules for part in place.module.modules() if part is not place.module)
    ]
