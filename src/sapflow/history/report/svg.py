"""A chart's SVG as a part of an HTML page: named for screen readers, with colours that the page decides on."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from sapflow.history.plot import palette
from sapflow.history.plot.chart import Chart

# What the page's style sheet calls the colours of charts.
VARIABLES = {
    palette.INK: "--ink", palette.MUTED: "--muted", palette.GRID: "--grid", palette.BAND: "--band",
    palette.PAPER: "--paper", palette.BLUE: "--blue", palette.VERMILLION: "--vermillion",
    palette.BLUISH_GREEN: "--green", palette.REDDISH_PURPLE: "--purple", palette.ORANGE: "--orange",
    palette.SKY_BLUE: "--sky",
}  # fmt: skip
COLOUR = re.compile("|".join(VARIABLES))
FONT = re.compile(r"font(-family)?:[^;]*")
FONT_SIZE = re.compile(r"font:[^;]*?([\d.]+)px|font-size:\s*([\d.]+)px")
REFERENCE = re.compile(r"url\(#([\w-]+)\)")
COORDINATES = {"d", "x", "y", "transform"}
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
LARGEST_SCALE = 1.75  # CSS pixels a point: a small chart does not fill a wide screen


def inline_svg(chart: Chart, key: str) -> str:
    """The chart as an <svg> element whose ids begin with `key`; names in it are escaped."""
    root = ET.fromstring(chart.to_svg())
    _strip(root)
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        _rename(element, key, used)
        _shorten(element)
        if style := element.get("style"):
            element.set("style", _page_style(style))
    for group in root.iter("g"):
        _say_style_once(group)
    width = float(root.get("viewBox", "0 0 1 1").split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    root.set("style", f"max-width:{width * LARGEST_SCALE:.0f}px")
    for place, (tag, text) in enumerate((("title", chart.title), ("desc", chart.description))):
        words = ET.Element(tag, {"id": f"{key}-{tag}"})
        words.text = text
        root.insert(place, words)
    return ET.tostring(root, encoding="unicode")


def _strip(root: ET.Element) -> None:
    """Take out what HTML does not want: namespaces, metadata, a style that would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for name in list(element.attrib):
            element.attrib[_local(name)] = element.attrib.pop(name)
        element.text, element.tail = ((text or "").strip() or None for text in (element.text, element.tail))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _references(element: ET.Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        if name == "href":
            yield value.removeprefix("#")
        yield from REFERENCE.findall(value)


def _rename(element: ET.Element, key: str, used: set[str]) -> None:
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{key}-{name}")
    if (target := element.get("href")) is not None:
        element.set("href", f"#{key}-{target.removeprefix('#')}")
    if (clip := element.get("clip-path")) is not None:
        element.set("clip-path", REFERENCE.sub(rf"url(#{key}-\1)", clip))


def _shorten(element: ET.Element) -> None:
    """A hundredth of a point is as fine as anybody sees."""
    if str(element.get("transform")).startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name in COORDINATES & element.attrib.keys():
        element.set(
            name, LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", " ".join(element.attrib[name].split()))
        )


def _say_style_once(group: ET.Element) -> None:
    """Of marks that all look the same the group says how they look."""
    styles = {mark.get("style") for mark in group}
    if len(group) > 1 and len(styles) == 1 and {mark.tag for mark in group} == {"use"} and not group.get("style"):
        group.set("style", str(styles.pop()))
        for mark in group:
            del mark.attrib["style"]


def _page_style(style: str) -> str:
    """Matplotlib's inline style with the page's font and the page's colours."""
    size = FONT_SIZE.search(style)
    weight = ";font-weight:bold" if re.search(r"font:[^;]*\b(bold|700)\b", style) else ""
    style = FONT.sub("", style)
    if size is not None and "font-size" not in style:
        style = f"font-size:{size[1] or size[2]}px{weight};{style}"
    style = COLOUR.sub(lambda match: f"var({VARIABLES[match[0]]})", style)
    return ";".join(part.strip().replace(": ", ":") for part in style.split(";") if part.strip())
