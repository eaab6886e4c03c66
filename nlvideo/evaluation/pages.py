"""What single-file pages share: template, style, and pictures that follow the light or dark scheme."""

import base64
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:  # imported on use: not every evaluation writes a report
    from matplotlib.figure import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"  # as in page.css
# Of page.css: what is black and white in a figure. Its own rule, since a picture does not see the page's style.
SVG_STYLE = (
    "<style>:root{--ink:#1b2430;--page:#fff;fill:var(--ink)}"
    "@media screen and (prefers-color-scheme:dark){:root{--ink:#e3e8ef;--page:#11161d}}</style>"
)
PIXELS = 96  # of an inch in CSS


class Picture(NamedTuple):
    """A picture in a page; width and height in CSS pixels."""

    url: str
    alt: str
    width: int
    height: int


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Returns a page; `template` is the path of a file in nlvideo/ that extends evaluation/base.html.j2."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("nlvideo", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)


def figure_picture(figure: "Figure", alt: str) -> Picture:
    width, height = figure.get_size_inches()
    return Picture(svg_url(figure), alt, round(PIXELS * width), round(PIXELS * height))


def svg_url(figure: "Figure") -> str:
    """Returns a figure as the data URL of an SVG without background, whose black is light on a dark page.

    Its text stays text, in the page's font: narrower than the one that the figure was laid out with. Colours that are
    to stay black or white are given as "#010101" or "#fefefe".
    """
    import matplotlib

    file = io.StringIO()
    # a fixed salt and no date: the same figure gives the same page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nlvideo"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONT, svg)
    svg = re.sub(r"((?:stroke|fill): )#000000", r"\1var(--ink)", svg)
    svg = re.sub(r"((?:stroke|fill): )#ffffff", r"\1var(--page)", svg)
    svg = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg))
    svg = svg.replace("<defs>", f"{SVG_STYLE}<defs>", 1)
    return "data:image/svg+xml," + quote(svg, safe=" =:/;,()*!+")


def file_url(kind: str, content: bytes) -> str:
    """Returns the data URL of a file of this MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
