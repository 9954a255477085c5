"""Figures that look right in light and dark, say what they show, and need no network.

Each `show_*` puts one `<figure>` with its caption into the cell's output. Lines and letters of static
figures are drawn in `INK`, which becomes the page's own text colour. The scripts behind interactive
figures (plotly's and CircuitsVis') are shipped once with the site; in JupyterLab, started by `make lab`,
each figure carries its own.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd
    import plotly.graph_objects
    from jaxtyping import Float
    from matplotlib.typing import RcKeyType
    from numpy.typing import NDArray
    from torch import Tensor

    from helpers.baselines import AgainstControls
    from helpers.claims import Estimate

SVG = "http://www.w3.org/2000/svg"
LINK = re.compile(r"^#(\S+)$|url\(#([^)]+)\)")
INK = "#010203"  # a colour that nothing else uses
BLUE, ORANGE, GREY = "#3c8dd0", "#d1791f", "#8a8a8a"
"""Distinguishable for colour-blind readers, with enough contrast on white and on near-black."""

STYLE: dict[RcKeyType, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",  # letters stay letters: searchable, and in the page's font
    "svg.hashsalt": "book",  # the same figure gives the same file
}


@contextmanager
def draw_figure(
    key: str, *, caption: str, alt: str, width: float = 7.0, height: float = 3.5, **subplots: Any
) -> Iterator[tuple[matplotlib.figure.Figure, Any]]:
    """Draw a static figure in the body of the `with`; it is shown as inline SVG when the body ends.

    Args:
        key: unique on the page; becomes the figure's anchor.
        caption: the finding first, then how to read it, n and error bars. Plain text.
        alt: what a reader who can't see the figure needs to know.
        width: inches at 100 % zoom, of a page column about 7 inches wide.
        height: inches.
        **subplots: passed on to `matplotlib.pyplot.subplots`.

    Yields:
        The figure and its axes, as `subplots` gives them.
    """
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        drawing, axes = pyplot.subplots(figsize=(width, height), layout="constrained", **subplots)
        try:
            yield drawing, axes
            target = io.StringIO()
            drawing.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            pyplot.close(drawing)
    _show(key, _inline_svg(target.getvalue(), key, alt), caption)


def show_plotly(key: str, drawing: plotly.graph_objects.Figure, *, caption: str, alt: str) -> None:
    """Show an interactive plotly figure. Texts that come from a model belong through `as_text`.

    Args:
        key: unique on the page; becomes the figure's anchor.
        drawing: a figure of plotly, whose look is changed.
        caption: the finding first, then how to read it. Plain text.
        alt: what a reader who can't see the figure needs to know.
    """
    drawing.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 70, "r": 20, "t": 20, "b": 70},
    )
    drawing.update_xaxes(automargin=True, title_standoff=10)
    drawing.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)")
    drawing.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zerolinecolor="rgba(128,128,128,0.5)")
    div = drawing.to_html(
        include_plotlyjs=_live(),
        full_html=False,
        div_id=f"plotly-{key}",
        config={"displaylogo": False, "typesetMath": False},
    )
    _show(key, f'<div class="interactive" role="img" aria-label="{escape(alt)}">{div}</div>', caption)


def show_attention(
    key: str,
    tokens: Sequence[str],
    patterns: Float[Tensor, "head query key"] | NDArray,
    names: Sequence[str],
    *,
    caption: str,
    alt: str,
) -> None:
    """Show attention patterns of some heads, to be hovered over, drawn by CircuitsVis.

    CircuitsVis' own Python side asks the network how to draw itself, so only its script is used.

    Args:
        key: unique on the page; becomes the figure's anchor.
        tokens: one text for each position.
        patterns: rows over keys sum to one.
        names: one for each head.
        caption: the finding first, then how to read it. Plain text.
        alt: what a reader who can't see the figure needs to know.
    """
    from helpers.engine.inputs import as_list

    properties = {
        # CircuitsVis drops a token spelled like an HTML tag, so such a token gets a space inside.
        "tokens": [re.sub(r"^<(?=[\w/|])", "< ", token) for token in tokens],
        "attention": [[[round(float(weight), 4) for weight in row] for row in head] for head in as_list(patterns)],
        "attentionHeadNames": list(names),
    }
    data = json.dumps(properties).replace("<", "\\u003c")  # no text can end the script element
    script = f"<script>{_circuitsvis_script()}</script>" if _live() else ""
    div = (
        f'<div class="interactive attention" role="img" aria-label="{escape(alt)}">'
        f'<div id="attention-{key}"></div></div>'
        f'{script}<script>CircuitsVis.render("attention-{key}", CircuitsVis.AttentionHeads, {data})</script>'
    )
    _show(key, div, caption)


def draw_head_map(
    axes: Any,
    values: Float[Tensor, "layer head"] | NDArray,
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Any:
    """Draw a number for each head as a colour; without limits zero is in the middle, and what is near it is left out.

    Returns the image.

    Args:
        axes: of matplotlib.
        values: a number for each head.
        title: above the axes.
        limits: the lowest and the highest number of the colours.
    """
    import numpy as np

    from helpers.engine.inputs import as_list

    values = np.asarray(as_list(values))
    n_layers, n_heads = values.shape
    most = float(np.abs(values).max()) or 1.0
    low, high = limits or (-most, most)
    if limits is None:
        values = np.where(np.abs(values) < 0.01 * most, np.nan, values)  # white, which glares on dark pages
    image = axes.pcolormesh(values.T, cmap="viridis" if limits else "RdBu", vmin=low, vmax=high, rasterized=True)
    step_x, step_y = (max(1, round(n / 6)) for n in (n_layers, n_heads))
    axes.set(xticks=np.arange(0, n_layers, step_x) + 0.5, xticklabels=np.arange(0, n_layers, step_x))
    axes.set(yticks=np.arange(0, n_heads, step_y) + 0.5, yticklabels=np.arange(0, n_heads, step_y))
    axes.set(xlabel="layer", ylabel="head", title=title)
    return image


def draw_interval(axes: Any, at: float, estimate: Estimate, *, sideways: bool = False, **style: Any) -> None:
    """Draw an estimate as a point with a bar for its interval.

    Args:
        axes: of matplotlib.
        at: where on the other axis the point stands.
        estimate: whose value and interval are drawn.
        sideways: whether values run along x instead of y.
        **style: passed on to `errorbar`.
    """
    error = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    place: dict[str, Any] = {"x": at, "y": estimate.value, "yerr": error}
    if sideways:
        place = {"x": estimate.value, "y": at, "xerr": error}
    axes.errorbar(**place, **{"fmt": "o", "color": BLUE, "capsize": 4} | style)


def show_against_controls(
    key: str,
    beside: Mapping[str, AgainstControls],
    *,
    unit: str,
    caption: str,
    alt: str,
    own: str = "the set under test",
) -> None:
    """Show sets beside their controls, a row for each: its interval in blue, each control a point, their median a line.

    Args:
        key: unique on the page; becomes the figure's anchor.
        beside: by the name of the row, what `baselines.compare_with_controls` gave.
        unit: of the effects, for the axis.
        caption: the finding first, then how to read it, n and error bars. Plain text.
        alt: what a reader who can't see the figure needs to know.
        own: what the blue points are, for the legend.
    """
    import numpy as np

    height = 1.2 + 0.45 * len(beside)
    with draw_figure(key, caption=caption, alt=alt, height=height) as (_, axes):
        for row, against in enumerate(beside.values()):
            means = np.asarray(against.controls)
            label = {"label": own} if row == 0 else {}
            draw_interval(axes, row, against.own, sideways=True, **label)
            label = {"label": "controls, and their median"} if row == 0 else {}
            axes.plot(means, np.full(len(means), row + 0.2), "o", color=ORANGE, alpha=0.6, ms=4, **label)
            if len(means):
                axes.plot([np.median(means)] * 2, [row + 0.08, row + 0.32], color=ORANGE)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set(yticks=range(len(beside)), yticklabels=[as_plain(name) for name in beside], xlabel=unit)
        axes.set_ylim(len(beside) - 0.4, -0.6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_layer_curve(axes: Any, table: pd.DataFrame, *, label: str = "", null: bool = True, **style: Any) -> None:
    """Draw the AUROC of a probe by layer, with its interval, and the band of its null in grey.

    Args:
        axes: of matplotlib.
        table: what `probes.Sweep.table` gives, of one component at one position.
        label: for the legend.
        null: whether to draw its band.
        **style: passed on to `plot`.
    """
    line = axes.plot(table["layer"], table["auroc"], **{"color": BLUE, "label": label} | style)[0]
    if null:
        band = table["layer"], table["null_low"], table["null_high"]
        axes.fill_between(*band, color=GREY, alpha=0.3, linewidth=0)
    interval = table["layer"], table["auroc_low"], table["auroc_high"]
    axes.fill_between(*interval, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="layer", ylabel="AUROC")


def draw_matrix(axes: Any, values: pd.DataFrame, *, limits: tuple[float, float] = (0.0, 1.0)) -> Any:
    """Draw a table of numbers as colours with the numbers in them; rows and columns keep their names.

    Args:
        axes: of matplotlib.
        values: numbers with named rows and columns.
        limits: the lowest and the highest number of the colours.
    """
    import numpy as np

    middle = sum(limits) / 2
    image = axes.imshow(values, cmap="RdBu", vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        far = abs(value - middle) > 0.35 * (limits[1] - limits[0])
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if far else "black", fontsize=9)
    axes.set_xticks(range(values.shape[1]), [as_plain(str(name)) for name in values.columns], rotation=30, ha="right")
    axes.set_yticks(range(values.shape[0]), [as_plain(str(name)) for name in values.index])
    axes.set(xlabel=values.columns.name or "", ylabel=values.index.name or "")
    return image


def draw_diagram(
    axes: Any,
    boxes: dict[str, tuple[float, float, str]],
    arrows: Sequence[tuple[str, str, str, float]],
    *,
    dashed: Collection[tuple[str, str]] = (),
) -> None:
    """Draw named boxes with text at (x, y), and labelled arrows between those that there are, as wide as they weigh.

    Args:
        axes: of matplotlib.
        boxes: by name their place and text, (x, y, text).
        arrows: (from, to, label, weight), by the names of boxes; the heaviest is four points wide.
        dashed: (from, to) of arrows that are drawn with broken lines.
    """
    style = {"boxstyle": "round,pad=0.4", "facecolor": "none", "edgecolor": INK}
    drawn = {
        name: axes.text(x, y, text.replace("$", r"\$"), ha="center", va="center", fontsize=9, bbox=style)
        for name, (x, y, text) in boxes.items()
    }
    heaviest = max((weight for *_, weight in arrows), default=1.0)
    for start, end, label, weight in arrows:
        if start in boxes and end in boxes:
            (x, y, _), (to_x, to_y, _) = boxes[start], boxes[end]
            patches = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
            broken = "--" if (start, end) in dashed else "-"
            line = {"linewidth": max(0.5, 4 * weight / heaviest), "linestyle": broken}
            style_of_arrow = {"arrowstyle": "->", "color": BLUE, "shrinkA": 4, "shrinkB": 4} | patches | line
            axes.annotate("", (to_x, to_y), (x, y), arrowprops=style_of_arrow)
            below = {"ha": "left", "va": "top", "fontsize": 8, "color": BLUE}
            axes.text((x + to_x) / 2, (y + to_y) / 2, label.replace("$", r"\$"), **below)
    axes.set(
        xlim=(min(x for x, *_ in boxes.values()) - 0.6, max(x for x, *_ in boxes.values()) + 0.6),
        ylim=(min(y for _, y, _ in boxes.values()) - 0.9, max(y for _, y, _ in boxes.values()) + 0.5),
    )
    axes.set_axis_off()


def as_text(text: str) -> str:
    """A text from a model or a data set for plotly's labels, which would take it for HTML."""
    return escape(text.replace("\n", "⏎"), quote=False)  # plotly knows no entity for a quotation mark


def as_plain(text: str) -> str:
    """A text from a model or a data set for matplotlib's labels, which would take dollar signs for mathematics."""
    return text.replace("\n", "⏎").replace("$", r"\$")


def _inline_svg(svg: str, key: str, alt: str) -> str:
    """An SVG file as an element of a page: ink in the page's colour, identifiers unique on the page."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    # Byte-level vocabularies have tokens of control characters, which XML forbids.
    root = ElementTree.fromstring(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", svg))
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    used = {
        name
        for element in root.iter()
        for text in element.attrib.values()
        for found in LINK.findall(text)
        for name in found
    }
    for element in root.iter():
        if element.get("id") not in used:  # equal images have equal ones
            element.attrib.pop("id", None)
        for name, text in element.attrib.items():
            text = text.replace(INK, "currentColor")
            text = re.sub(r"url\(#", f"url(#{key}-", text)
            if name == "id" or (text.startswith("#") and name.endswith("href")):  # other links hold images
                text = re.sub(r"^(#?)", rf"\g<1>{key}-", text)
            element.set(name, text)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")


def _live() -> bool:
    """Whether figures must carry their scripts: in JupyterLab, where no page has loaded them."""
    return os.environ.get("BOOK_LIVE") == "1"


def _circuitsvis_script() -> str:
    bundle = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    return bundle.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _show(key: str, content: str, caption: str) -> None:
    from IPython.display import HTML, display

    display(HTML(f'<figure id="{key}" class="book">{content}<figcaption>{escape(caption)}</figcaption></figure>'))
