"""Where NaN was born: the first module that a finite gradient enters and a non-finite one leaves, and its parameter.

Nothing is added to a pass for it: the squares that are measured anyway tell which passes are not finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sapflow.gradients.epoch_sums import fired_cells
from sapflow.gradients.pass_sums import ENTERING, GIVEN, LEAVING, TAKEN

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


class OriginSearch:
    """Follows the passes, and tells the origin of each run of non-finite ones, once.

    Args:
        patience: the pass of a run that is told of: the first; where a loss scale makes single overflows normal, later.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._run = 0  # non-finite passes in a row, among those followed
        self._glanced: list[int] = []  # a run of non-finite passes, by their number, among those glanced at
        self._parameters: dict[int, dict[str, str]] = {}  # by pass and module, from before anybody clipped

    def glance(self, passes: int, places: list[Place]) -> None:
        """Note the non-finite parameters' gradients as they stand at the end of a non-finite backward."""
        if self._glanced and passes > self._glanced[-1] + 1:
            self._glanced.clear()
        if passes not in self._glanced:
            self._glanced.append(passes)
        if len(self._glanced) <= self.patience:
            self._parameters[passes] = {place.name: first_bad_parameter(place.module) for place in places}

    def reset(self) -> None:
        """Hear that the next passes are finite."""
        self._run = 0
        self._parameters.clear()

    def follow(
        self, squares: Tensor, pass_index: int, passes: int, places: list[Place], *, gradients_stand: bool
    ) -> Origin | None:
        """Hear of the next pass, squares of shape (rows, columns); its origin, if it is the one to be told.

        With `gradients_stand`, the parameters still have the gradients of this pass, be they clipped.
        """
        parameters: Mapping[str, str] | None = self._parameters.pop(passes, None)
        if bool(squares.isfinite().all()):
            self._run = 0
            return None
        self._run += 1
        if self._run != self.patience:
            return None
        if parameters is None:
            parameters = _unclipped(squares, places) if gradients_stand else {}
        place, in_forward = _birthplace(squares, places, parameters)
        if place is None:
            text = _outside(squares, places)
            return Origin(OUTSIDE, pass_index, passes, "", in_forward, text)
        parameter = "" if in_forward else parameters.get(place.name, "")
        return Origin(place.name, pass_index, passes, parameter, in_forward, _inside(place, in_forward, parameter))


def first_bad_parameter(module: nn.Module) -> str:
    """The parameter with a non-finite gradient that a backward pass comes to first: the last layer's, its weight."""
    bad = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    layers = [name.rpartition(".")[0] for name in bad]
    return bad[layers.index(layers[-1])] if bad else ""


def _unclipped(squares: Tensor, places: list[Place]) -> Mapping[str, str]:
    """The bad parameters of each module; none at all if clipping by a norm that is NaN has spoilt every gradient."""
    found = {place.name: first_bad_parameter(place.module) for place in places}
    sound = [place for place in places if bool(squares[place.row].isfinite().all())]
    return {} if any(found[place.name] for place in sound) else found


def _birthplace(squares: Tensor, places: list[Place], parameters: Mapping[str, str]) -> tuple[Place | None, bool]:
    """The module in which a finite value became non-finite, and whether it did so in the forward pass."""
    finite = squares.isfinite()
    if squares.shape[1] > TAKEN:
        born = [place for place in places if finite[place.row, TAKEN] and not finite[place.row, GIVEN]]
        if born:
            return _innermost(born)[0], True
        if any(not finite[place.row, TAKEN] for place in places):
            return None, True
    entered = [place for place in places if finite[place.row, ENTERING] and fired_cells(squares[place.row])[ENTERING]]
    born = [place for place in entered if not finite[place.row, LEAVING]]
    if not born:  # where nothing leaves, as in a first layer, the parameters tell
        born = [place for place in entered if parameters.get(place.name)]
    return (_innermost(born)[-1] if born else None), False


def _innermost(places: list[Place]) -> list[Place]:
    """Those that contain no other of them."""
    modules = {id(place.module) for place in places}
    return [
        place
        for place in places
        if not any(id(part) in modules for part in place.module.modules() if part is not place.module)
    ]


def _inside(place: Place, in_forward: bool, parameter: str) -> str:
    if in_forward:
        return f"born in the forward of {place.name}: what went in was finite, what came out was not"
    first = f"; the first parameter with a non-finite gradient: {parameter}" if parameter else ""
    return f"born in the backward of {place.name}: a finite gradient entered, a non-finite one came out{first}"


def _outside(squares: Tensor, places: list[Place]) -> str:
    bad = [place.name for place in places if not bool(squares[place.row].isfinite().all())]
    return f"born outside of what is watched (in the loss, or in modules between); it came first to {bad[-1]}"
