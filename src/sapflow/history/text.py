"""Rows as aligned text, which is never wrapped: to be read, copied, cut and searched."""

from collections.abc import Iterator, Sequence


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """The lines of a table; columns that are `right` stand to the right, as numbers do."""
    table = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        cells = (
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(cells).rstrip()
        if number == 0:
            yield "─" * (sum(widths) + 2 * (len(widths) - 1))


def counted(number: int, what: str) -> str:
    """So many of them, in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size(count: int) -> str:
    """So many bytes, in a unit that suits them."""
    if count < 1000:
        return counted(count, "byte")
    return f"{count / 1e3:.3g} kB" if count < 999_500 else f"{count / 1e6:.3g} MB"


def printable(text: str) -> str:
    """Names are a stranger's: nothing in them steers the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)
