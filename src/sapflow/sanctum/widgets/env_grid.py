"""The envs of the overview in a grid: cards while they all fit, a line of a few cells for each where they do not."""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from sapflow.sanctum.cells import CARD_WIDTH, WIDE_CARD, card_lines, dense_line, dense_width, env_card
from sapflow.sanctum.schema import EnvState
from sapflow.sanctum.spans import DIM, Line, fit, line
from sapflow.sanctum.widgets.span_view import built, strip_of

MOST = 0.7  # of the screen's height goes to the grid


class Density(StrEnum):
    """How much room an env gets; AUTO decides by whether all of them fit as cards."""

    AUTO = "auto"
    CARDS = "cards"
    DENSE = "dense"

    @property
    def next(self) -> "Density":
        """The density after this one, round and round."""
        every = list(Density)
        return every[(every.index(self) + 1) % len(every)]


class Shape(NamedTuple):
    """How the grid is cut: cells of `width` × `height`, `columns` of them side by side; `slots` have room in each."""

    dense: bool
    columns: int
    width: int
    height: int
    slots: int
    digits: int


class EnvGrid(ScrollView, can_focus=True):
    """The n-th cell shows the n-th env; the cursor stays with its env wherever that goes.

    Drawn line by line: only the lines that are seen are built, and of these only the cells of envs that changed.
    """

    class Chosen(Message):
        """The person wants to see the env's own screen."""

        def __init__(self, env_id: int) -> None:
            super().__init__()
            self.env_id = env_id

    class Moved(Message):
        """The cursor stands on another env."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "detail", key_display="enter", tooltip="The env in focus, with all its seeds"),
        Binding("left,h", "move(-1, 0)", "left", show=False),
        Binding("right,l", "move(1, 0)", "right", show=False),
        Binding("up,k", "move(0, -1)", "up", show=False),
        Binding("down,j", "move(0, 1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home,g", "jump(0)", "first", show=False),
        Binding("end,G", "jump(-1)", "last", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.envs: Sequence[EnvState] = ()
        self.cursor: int | None = None  # an env_id
        self.density = Density.AUTO
        self.there = 0
        self._nothing = ""
        self._whole = 0  # the height with all envs
        self.shape = Shape(False, 1, CARD_WIDTH, card_lines(1), 1, 2)
        self._places: dict[int, int] = {}
        self._strips: dict[int, tuple[EnvState, bool, list[Strip]]] = {}

    def show(self, envs: Sequence[EnvState], density: Density, there: int, nothing: str) -> None:
        """Draws `envs`, of `there` that the run has, in their order; what did not change stays as it is drawn.

        `nothing` stands there where no env is left of them.
        """
        before = self.envs
        self.envs, self.density, self.there = envs, density, there
        self._places = {env.env_id: place for place, env in enumerate(envs)}
        if self.cursor not in self._places:
            self.cursor = envs[0].env_id if envs else None
            self.post_message(self.Moved())
        other_words, self._nothing = not envs and nothing != self._nothing, nothing
        if self._cut() or len(before) != len(envs) or other_words:
            self._strips.clear()
            self.refresh()
            return
        self._redraw([place for place in self._seen if before[place] is not envs[place]])

    @property
    def focused_env(self) -> EnvState | None:
        """The env that the cursor stands on."""
        return None if self.cursor is None else self.envs[self._places[self.cursor]]

    def env_at(self, x: int, y: int) -> EnvState | None:
        """The env whose cell covers this point of the widget."""
        column, row = x // self.shape.width, (y + round(self.scroll_y)) // self.shape.height
        place = row * self.shape.columns + column
        return self.envs[place] if 0 <= column < self.shape.columns and 0 <= place < len(self.envs) else None

    def redraw(self) -> None:
        """Draws everything anew, in whatever colours there are now."""
        self._strips.clear()
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        """As many columns as there is room for."""
        if self._cut():
            self.redraw()

    def _cut(self) -> bool:
        """Finds the shape that the envs, the density and the room ask for; returns whether it is another one."""
        width = max(self.size.width, 1)
        slots = max((len(env.seeds) for env in self.envs), default=1) or 1
        digits = max(len(str(max(self._places, default=0))), 2)
        room = int(MOST * self.screen.size.height) // card_lines(slots)  # rows of cards
        columns = self._columns(width, room)
        fit = columns * room >= len(self.envs)
        dense = self.density is Density.DENSE or (self.density is Density.AUTO and not fit)
        if dense:
            cell = min(dense_width(digits, slots), width)
            shape = Shape(True, max(width // cell, 1), cell, 1, slots, digits)
        else:
            shape = Shape(False, columns, width // columns, card_lines(slots), slots, digits)
        height = -(-len(self.envs) // shape.columns) * shape.height
        if self.virtual_size != (width, height):
            self.virtual_size = Size(width, height)
        if len(self.envs) == self.there:
            self._whole = height
        changed = shape != self.shape
        self.shape = shape
        return changed

    def _columns(self, width: int, room: int) -> int:
        """Wide cards side by side, or as many more as it takes for all to be seen in so many rows."""
        most = max(min(width // CARD_WIDTH, self.there), 1)
        wide = min(max(width // WIDE_CARD, 1), most)
        return min(max(wide, -(-len(self.envs) // max(room, 1))), most)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As high as with all envs while some are left out, so that what stands below stays in its place."""
        return max(super().get_content_height(container, viewport, width), self._whole)

    def _redraw(self, places: Sequence[int]) -> None:
        """Asks for the cells at `places` to be drawn again, as far as they are seen."""
        seen = self._seen
        regions = [self._region(place) for place in places if place in seen]
        if len(regions) > 16:  # then one region of all is less work
            self.refresh(self.size.region)
        elif regions:
            self.refresh(*regions)

    @property
    def _seen(self) -> range:
        """The places that are in sight."""
        top, (_, columns, _, height, *_) = round(self.scroll_y), self.shape
        first, last = top // height * columns, -(-(top + self.size.height) // height) * columns
        return range(min(first, len(self.envs)), min(last, len(self.envs)))

    def _region(self, place: int) -> Region:
        """Where on the widget the cell is."""
        row, column = divmod(place, self.shape.columns)
        _, _, width, height, *_ = self.shape
        return Region(column * width, row * height - round(self.scroll_y), width, height)

    def render_line(self, y: int) -> Strip:
        """The cells of line `y`, side by side."""
        base, theme = self.rich_style, self.app.theme  # which take a while to be found
        if not self.envs:
            nothing = fit(line((self._nothing if y == 0 else "", DIM)), self.size.width)
            return strip_of(nothing, base, theme)
        row, at = divmod(y + round(self.scroll_y), self.shape.height)
        first = row * self.shape.columns
        envs = self.envs[first : first + self.shape.columns]
        strips = [self._cell(env, base, theme)[at] for env in envs]
        return Strip.join(strips).adjust_cell_length(self.size.width, base)

    def _cell(self, env: EnvState, base: Style, theme: str) -> list[Strip]:
        """The lines of an env's cell; those of last time, if nothing about it changed."""
        focused = self.has_focus and env.env_id == self.cursor
        known = self._strips.get(env.env_id)
        if known is not None and known[0] is env and known[1] is focused:
            return known[2]
        lines = built(lambda: self._build(env, focused), self)
        blank: Sequence[Line] = [()] * (self.shape.height - len(lines))
        strips = [strip_of(fit(spans, self.shape.width), base, theme) for spans in (*lines, *blank)]
        self._strips[env.env_id] = (env, focused, strips)
        return strips

    def _build(self, env: EnvState, focused: bool) -> Sequence[Line]:
        if self.shape.dense:
            return [dense_line(env, self.shape.digits, self.shape.slots, focused)]
        return env_card(env, self.shape.width, self.shape.slots, focused)

    def on_focus(self) -> None:
        """The env in focus has a heavy frame, or a reversed name."""
        self._redraw_cursor()

    def on_blur(self) -> None:
        """Back to the light frame."""
        self._redraw_cursor()

    def _redraw_cursor(self) -> None:
        if self.cursor is not None:
            self._redraw([self._places[self.cursor]])

    def move_to(self, place: int) -> None:
        """Puts the cursor on the env at `place` and brings it into sight."""
        self._redraw_cursor()
        self.cursor = self.envs[place].env_id
        self._redraw_cursor()
        region = self._region(place)
        if region.y < 0:
            self.scroll_relative(y=region.y, animate=False)
        elif region.bottom > self.size.height:
            self.scroll_relative(y=region.bottom - self.size.height, animate=False)
        self.post_message(self.Moved())

    def action_move(self, right: int, down: int) -> None:
        """Moves the cursor over the grid, as far as there are envs."""
        if self.cursor is None:
            return
        place = self._places[self.cursor] + right + down * self.shape.columns
        if 0 <= place < len(self.envs):
            self.move_to(place)

    def action_page(self, pages: int) -> None:
        """Moves the cursor by as many rows as are seen."""
        if self.cursor is None:
            return
        rows = max(self.size.height // self.shape.height, 1)
        column = self._places[self.cursor] % self.shape.columns
        place = self._places[self.cursor] + pages * rows * self.shape.columns
        last = len(self.envs) - 1
        self.move_to(min(max(place, min(column, last)), last))

    def action_jump(self, place: int) -> None:
        """Moves the cursor to the first or the last env."""
        if self.envs:
            self.move_to(place % len(self.envs))

    def action_choose(self) -> None:
        """Says that the env in focus was chosen."""
        if self.cursor is not None:
            self.post_message(self.Chosen(self.cursor))

    def on_click(self, event: events.Click) -> None:
        """A click chooses."""
        env = self.env_at(event.x, event.y)
        if env is not None:
            self.move_to(self._places[env.env_id])
            self.action_choose()
