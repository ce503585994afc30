"""Pages that are one file: text and pictures in it, nothing fetched, readable on paper and on a
telephone.

The layout is `templates/page.html.jinja`; a page is a template that extends it.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from kd.reports.figures import settle


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        src: the picture itself, as a data URI.
        caption: what is shown, of how many.
        alt: what those who cannot see it need to know.
        width: in CSS pixels, at which its letters have their size.
    """

    src: str
    caption: str
    alt: str
    width: int


def as_svg(figure: Figure) -> str:
    """The text of an SVG file; the same for the same figure."""
    out = io.BytesIO()
    settle(figure)
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "kd"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().decode()


def picture(figure: Figure, caption: str, alt: str) -> Picture:
    """Draw a figure as SVG; as an image, no script in it runs and no name in it clashes."""
    data = base64.b64encode(as_svg(figure).encode()).decode()
    return Picture(
        f"data:image/svg+xml;base64,{data}", caption, alt, round(96 * figure.get_figwidth())
    )


def image(figure: Figure, caption: str, alt: str) -> Picture:
    """Draw a figure as PNG: for one that is made of images, of which SVG has nothing."""
    out = io.BytesIO()
    settle(figure)
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(out.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", caption, alt, round(96 * figure.get_figwidth()))


def render(template: str, **values: Any) -> str:
    """A page from a template in `kd/reports/templates`.

    Whatever the values hold is shown as text, `<script>` too.
    """
    environment = Environment(
        loader=PackageLoader("kd.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
