"""Pages in one file: text and pictures, nothing fetched, for paper and phones.

The layout is `templates/page.html.jinja`; a page is a template that extends it.
"""

import base64
import io
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from kd.reports.figures import as_array, settle


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        src: the picture as a data URI.
        caption: its content and counts.
        alt: description for those who cannot see it.
        width: in CSS pixels, for text at its normal size.
    """

    src: str
    caption: str
    alt: str
    width: int


def as_svg(figure: Figure) -> str:
    """Return an SVG file's text; equal figures give equal text."""
    out = io.BytesIO()
    settle(figure)
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "kd"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().decode()


def picture(figure: Figure, caption: str, alt: str) -> Picture:
    """Draw a figure as SVG; inside an image no script runs and no name clashes."""
    return svg_picture(as_svg(figure), caption, alt, round(96 * figure.get_figwidth()))


def svg_picture(svg: str, caption: str, alt: str, width: int) -> Picture:
    """Return a picture of an SVG file's text; see `Picture`."""
    data = base64.b64encode(svg.encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", caption, alt, width)


def image(figure: Figure, caption: str, alt: str) -> Picture:
    """Draw a figure as PNG, for figures made of images."""
    out = io.BytesIO()
    Image.fromarray(as_array(figure)).save(out, format="png")
    data = base64.b64encode(out.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", caption, alt, round(96 * figure.get_figwidth()))


def render(template: str, **values: object) -> str:
    """Render a template of `kd/reports/templates`; values are escaped."""
    environment = Environment(
        loader=PackageLoader("kd.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
