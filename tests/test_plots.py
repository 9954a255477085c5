import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.backend_bases import MouseEvent
from matplotlib.text import Annotation

from helpers import baselines, plots
from helpers.claims import Estimate

matplotlib.use("agg")

HOSTILE = ["</script><script>alert(1)</script>", "<s>", "$x$", "&lt;", '"><img src=x onerror=alert(1)>', "<|end|>"]
HOSTILE += [r"\$x$", "$", "é$_$", "<!--", "]]>", "'", "`x`", r"\alpha", "a_b^c{}", "%"]
CAPTION = "<b>bold</b> & \"quoted\" '$x$' </figcaption>"
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Page(HTMLParser):
    """The elements of a piece of HTML, as (tag, attributes), and the text in each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def draw(key="fig", labels=("one", "two"), **options):
    """A figure with lines, a clipped area, an image and a legend: all that gives SVG identifiers and references."""
    with plots.draw_figure(key, **({"caption": CAPTION, "alt": CAPTION} | options)) as (_, axes):
        axes.plot([1, 2, 3], marker="o", label=labels[0])
        axes.fill_between([0, 1, 2], [0, 1, 0], [1, 2, 1], color=plots.BLUE, alpha=0.2)
        axes.imshow(np.eye(3), extent=(0, 1, 0, 1))
        axes.set_title(labels[1])
        axes.legend()


def svg_texts(figure_html):
    """The letters of a figure, as (text, style)."""
    svg = figure_html[figure_html.index("<svg") : figure_html.index("</svg>") + 6]
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [(element.text, element.get("style")) for element in elements]


def hosts(text):
    return set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\"'\s<>)]*", text)) - NAMESPACES


@pytest.fixture(autouse=True)
def not_live(monkeypatch):
    monkeypatch.delenv("BOOK_LIVE", raising=False)


# Static figures


def test_ink_becomes_the_colour_of_the_pages_text(shown):
    draw()
    assert plots.INK not in shown[0].html
    assert "stroke: currentColor" in shown[0].html
    texts = svg_texts(shown[0].html)
    assert {"one", "two"} <= {text for text, _ in texts}
    assert all("fill: currentColor" in style for _, style in texts)  # without a fill letters would be black
    assert not re.search(r"(?:fill|stroke): #(?:000000|ffffff)", shown[0].html)  # would vanish in dark or light


def test_caption_and_alternative_text_are_shown_as_they_are_and_not_as_html(shown):
    draw()
    plots.show_plotly("bars", go.Figure(go.Bar(y=[1])), caption=CAPTION, alt=CAPTION)
    plots.show_attention("heads", ["a"], np.eye(1)[None], ["0.1"], caption=CAPTION, alt=CAPTION)
    for output, key in zip(shown, ("fig", "bars", "heads"), strict=True):
        page = Page(output.html)
        assert page.elements[0] == ("figure", {"id": key, "class": "book"})
        assert "".join(page.texts["figcaption"]) == CAPTION
        (described,) = [attributes for _, attributes in page.elements if "aria-label" in attributes]
        assert described["aria-label"] == CAPTION
        assert described["role"] == "img"
        assert not page.all("b")


def test_two_figures_on_a_page_share_no_identifier(shown):
    draw("first")
    draw("second")
    pages = [Page(output.html) for output in shown]
    found = [[attributes["id"] for _, attributes in page.elements if "id" in attributes] for page in pages]
    for identifiers in found:
        assert len(identifiers) >= 5
        assert len(set(identifiers)) == len(identifiers)
    assert set(found[0]).isdisjoint(found[1])


def test_every_reference_in_a_figure_is_to_an_identifier_in_it(shown):
    draw()
    referred = set(re.findall(r"url\(#([^)]+)\)", shown[0].html)) | set(re.findall(r'href="#([^"]+)"', shown[0].html))
    identifiers = set(re.findall(r'\bid="([^"]+)"', shown[0].html))
    assert len(referred) > 2
    assert referred <= identifiers


def test_the_same_figure_gives_the_same_bytes(shown):
    patterns = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 4))
    for _ in range(2):
        draw()
        plots.show_plotly("bars", go.Figure(go.Bar(y=[1, 2])), caption="", alt="")
        plots.show_attention("heads", list("abcd"), patterns, ["0.1", "0.2"], caption="", alt="")
    first, second = shown[:3], shown[3:]
    assert [output.html for output in first] == [output.html for output in second]
    assert len({output.html for output in first}) == 3


def test_a_body_that_fails_shows_nothing_and_leaves_nothing_open(shown):
    before = dict(matplotlib.rcParams)
    with pytest.raises(ZeroDivisionError), plots.draw_figure("fig", caption="", alt=""):
        _ = 1 / 0
    draw()
    assert len(shown) == 1
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_the_axes_are_those_that_were_asked_for(shown):
    with plots.draw_figure("fig", caption="", alt="", width=5, height=2, ncols=3, sharey=True) as (drawing, axes):
        assert axes.shape == (3,)
        assert tuple(drawing.get_size_inches()) == (5, 2)


@pytest.mark.parametrize("label", ['id="a"', "url(#a)", 'href="#a"', "#010203"])
def test_a_label_that_looks_like_svg_is_shown_as_it_is(label, shown):
    draw(labels=(label, "title"))
    assert label in dict(svg_texts(shown[0].html))


# Texts from a model or a data set


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_is_a_plain_label_in_a_static_figure(text, shown):
    draw(labels=(plots.as_plain(text), "title"))
    assert text in dict(svg_texts(shown[0].html))
    assert not {"script", "img", "s"} & {tag for tag, _ in Page(shown[0].html).elements}


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x1b", "\r", "\t", "\x7f", "\x85", "\ufffd", "\uffff"])
def test_a_token_with_a_control_character_breaks_no_figure(character, shown):
    draw(labels=(plots.as_plain(f"a{character}b"), "title"))
    assert any(text.startswith("a") and text.endswith("b") for text, _ in svg_texts(shown[0].html))


@given(text=st.text(alphabet="$\\x_^{}<>&;%#'\"", min_size=1, max_size=8))
def test_plain_is_never_taken_for_mathematics(text):
    drawing = pyplot.figure()
    label = drawing.text(0, 0, plots.as_plain(text))
    shown, is_mathematics = label._preprocess_math(label.get_text())
    pyplot.close(drawing)
    assert (shown, is_mathematics) == (text, False)


def as_plotly_shows(label):
    """What plotly.js makes of a label: it knows numbers and these names, and leaves all others as they stand."""
    names = {"mu": "μ", "amp": "&", "lt": "<", "gt": ">", "nbsp": "\xa0", "times": "×", "plusmn": "±", "deg": "°"}

    def character(match):
        code = match[1]
        if code.startswith("#"):
            return chr(int(code[2:], 16) if code[1] == "x" else int(code[1:]))
        return names.get(code, match[0])

    return re.sub(r"&(#\d+|#x[\da-fA-F]+|[a-z]+);", character, label)


@given(text=st.text() | st.text(alphabet="<>&;#\"'$/amplt39 \n"))
def test_plotly_shows_as_text_as_it_is_and_finds_no_html_in_it(text):
    assert as_plotly_shows(plots.as_text(text)) == text.replace("\n", "⏎")
    assert not set(plots.as_text(text)) & set("<>\n")


def test_a_line_break_is_shown_and_breaks_no_label():
    assert plots.as_plain("a\nb") == plots.as_text("a\nb") == "a⏎b"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_is_a_plain_label_in_a_plotly_figure(text, shown):
    label = plots.as_text(text)
    plots.show_plotly("bars", go.Figure(go.Bar(x=[label], y=[1], text=[label])), caption="", alt="")
    page = Page(shown[0].html)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    (call,) = page.texts["script"]
    found = re.search(r'"x":\[("(?:[^"\\]|\\.)*")\]', call)[1]
    assert as_plotly_shows(json.loads(found)) == text


def test_plotly_does_not_typeset_dollar_signs_on_a_page_with_mathematics(shown):
    plots.show_plotly("bars", go.Figure(go.Bar(x=[plots.as_text("$x$")], y=[1])), caption="", alt="")
    assert '"$x$"' not in shown[0].html or re.search(r'"typesetMath":\s*false', shown[0].html)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_token_is_a_plain_token_in_an_attention_figure(text, shown):
    plots.show_attention("heads", [text, "b"], np.eye(2)[None], [text], caption="", alt="")
    page = Page(shown[0].html)
    assert [tag for tag, _ in page.elements] == ["figure", "div", "div", "script", "figcaption"]
    (call,) = page.texts["script"]
    data = json.loads(re.fullmatch(r".*?CircuitsVis\.AttentionHeads, (.*)\)", call, re.DOTALL)[1])
    assert [token.replace("< ", "<") for token in data["tokens"]] == [text, "b"]
    assert not re.match(r"<[\w/|]", data["tokens"][0])  # CircuitsVis would drop it
    assert data["attentionHeadNames"] == [text]


def test_an_attention_figure_carries_the_patterns_of_each_head(shown):
    patterns = np.tril(np.random.default_rng(0).random((3, 4, 4)))
    patterns /= patterns.sum(-1, keepdims=True)
    plots.show_attention("heads", list("abcd"), patterns, ["0.1", "0.2", "1.0"], caption="", alt="")
    call = re.search(r"AttentionHeads, (\{.*?\})\)</script>", shown[0].html)[1]
    data = json.loads(call)
    np.testing.assert_allclose(data["attention"], patterns, atol=1e-4)
    assert data["attentionHeadNames"] == ["0.1", "0.2", "1.0"]
    assert f'"{"attention-heads"}"' in shown[0].html
    assert [div["id"] for div in Page(shown[0].html).all("div") if "id" in div] == ["attention-heads"]


# Heads, intervals and diagrams


def at_label(axes, layer, head):
    """A mouse over the place that the axes' own labels give to a head, of any layer and head that have one."""
    places = [
        dict(zip([label.get_text() for label in axis.get_ticklabels()], axis.get_ticklocs(), strict=True))
        for axis in (axes.xaxis, axes.yaxis)
    ]
    x, y = axes.transData.transform((places[0][str(layer)], places[1][str(head)]))
    return MouseEvent("motion_notify_event", axes.figure.canvas, x, y)


@pytest.mark.parametrize("limits", [None, (-3, 3)])
@pytest.mark.parametrize(("n_layers", "n_heads"), [(3, 5), (5, 3), (1, 1), (12, 12), (30, 9)])
def test_a_head_map_shows_each_head_at_its_layer_and_number(n_layers, n_heads, limits, shown):
    values = np.random.default_rng(0).uniform(0.5, 2, size=(n_layers, n_heads)) * (-1) ** np.arange(n_heads)
    with plots.draw_figure("heads", caption="", alt="") as (_, axes):
        image = plots.draw_head_map(axes, values, title="name movers", limits=limits)
        labels = [[int(label.get_text()) for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)]
        for layer in labels[0]:
            for head in labels[1]:
                assert image.get_cursor_data(at_label(axes, layer, head)) == values[layer, head]
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("layer", "head", "name movers")
    for shown_labels, n in zip(labels, (n_layers, n_heads), strict=True):
        assert shown_labels[0] == 0 and shown_labels[-1] < n
        assert min(n, 4) <= len(shown_labels) <= 9


def test_a_head_map_has_zero_in_the_middle_unless_it_is_given_limits(shown):
    values = torch.tensor([[0.5, -2.0], [1.0, 0.0]])
    with plots.draw_figure("heads", caption="", alt="", ncols=4) as (_, axes):
        found = [
            plots.draw_head_map(panel, one, limits=limits)
            for panel, one, limits in zip(
                axes, (values, -values, values * 0, values), (None, None, None, (0, 1)), strict=True
            )
        ]
        assert [image.get_clim() for image in found] == [(-2, 2), (-2, 2), (-1, 1), (0, 1)]
        assert [bool(np.ma.getmaskarray(image.get_array())[1, 1]) for image in found] == [True, True, True, False]
        red, middle, blue = found[0].cmap(found[0].norm([-2, 0, 2]))
        assert red[0] > red[2] and blue[2] > blue[0]
        assert min(middle[:3]) > 0.9


def test_an_intervals_bar_ends_at_its_low_and_high_end(shown):
    with plots.draw_figure("interval", caption="", alt="") as (_, axes):
        plots.draw_interval(axes, 3.0, Estimate(0.5, 0.2, 0.6, 10), color=plots.ORANGE, label="ten")
        (point, caps, (bar,)) = axes.containers[0]
        assert point.get_xydata().tolist() == [[3.0, 0.5]]
        np.testing.assert_allclose(bar.get_segments(), [[[3.0, 0.2], [3.0, 0.6]]])
        np.testing.assert_allclose([cap.get_xydata()[0] for cap in caps], [[3.0, 0.2], [3.0, 0.6]])
        assert point.get_color() == plots.ORANGE
        assert axes.get_legend_handles_labels()[1] == ["ten"]


BOXES = {"early": (0, 0, "previous token"), "late": (1, 2, "induction"), "apart": (2, 0, "others")}


def drawn_arrows(axes):
    return [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]


def test_a_layer_curve_has_its_line_its_interval_and_its_null(shown):
    names = ("auroc", "auroc_low", "auroc_high", "null_low", "null_high")
    table = pandas.DataFrame({"layer": range(3)} | {name: [0.1 * i, 0.5, 0.9] for i, name in enumerate(names)})
    for null in (True, False):
        with plots.draw_figure(f"curve-{null}", caption="", alt="") as (_, axes):
            plots.draw_layer_curve(axes, table, null=null)
            assert axes.lines[0].get_xydata().tolist() == [[0, 0.0], [1, 0.5], [2, 0.9]]
            bands = [band.get_datalim(axes.transData).get_points()[:, 1].tolist() for band in axes.collections]
            assert bands == ([pytest.approx([0.3, 0.9])] if null else []) + [pytest.approx([0.1, 0.9])]


def test_a_matrix_has_each_number_in_its_cell_and_the_names_at_its_sides(shown):
    table = pandas.DataFrame([[0.1, 0.55], [0.9, 0.5]], index=["$a$", "b"], columns=["c", "d"])
    table.index.name, table.columns.name = "trained", "tested"
    with plots.draw_figure("matrix", caption="", alt="") as (_, axes):
        plots.draw_matrix(axes, table)
        assert {text.get_text(): text.get_position() for text in axes.texts} == {
            "0.10": (0, 0),
            "0.55": (1, 0),
            "0.90": (0, 1),
            "0.50": (1, 1),
        }
        assert [label.get_text() for label in axes.get_yticklabels()] == [r"\$a\$", "b"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("tested", "trained")


def test_a_diagram_has_the_arrows_both_of_whose_boxes_there_are(shown):
    arrows = [
        ("early", "late", "keys", 1.0),
        ("early", "gone", "one", 9.0),
        ("gone", "late", "two", 1.0),
        ("late", "apart", "three", 2.0),
    ]
    with plots.draw_figure("diagram", caption="", alt="") as (_, axes):
        plots.draw_diagram(axes, BOXES, arrows)
        assert drawn_arrows(axes) == [((0, 0), (1, 2)), ((1, 2), (2, 0))]
        (label,) = [text for text in axes.texts if text.get_text() == "keys"]
        assert label.get_position() == (0.5, 1)
        assert all(axes.viewLim.contains(x, y) for x, y, _ in BOXES.values())
    texts = {text for text, _ in svg_texts(shown[0].html)}
    assert texts == {"previous token", "induction", "others", "keys", "three"}


def test_an_arrow_is_as_wide_as_it_weighs(shown):
    arrows = [("early", "late", "keys", 0.5), ("late", "apart", "three", 2.0)]
    with plots.draw_figure("diagram", caption="", alt="") as (_, axes):
        plots.draw_diagram(axes, BOXES, arrows)
        widths = [text.arrow_patch.get_linewidth() for text in axes.texts if isinstance(text, Annotation)]
    assert widths == [1.0, 4.0]


def test_an_arrow_of_a_diagram_goes_from_box_to_box_and_into_none(shown):
    with plots.draw_figure("diagram", caption="", alt="") as (drawing, axes):
        plots.draw_diagram(axes, BOXES, [("early", "late", "keys", 1.0)])
        drawing.canvas.draw()
        (points,) = [text.arrow_patch.get_path().vertices for text in axes.texts if isinstance(text, Annotation)]
        areas = [text.get_bbox_patch().get_window_extent() for text in axes.texts if text.get_bbox_patch()]
    assert len(areas) == 3
    assert not any(area.contains(*point) for area in areas for point in points)
    for area, end in ((areas[0], points[0]), (areas[1], points[2])):  # 1 is the middle, what follows is the head
        assert area.padded(10).contains(*end)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_plain_in_a_box_of_a_diagram(text, shown):
    with plots.draw_figure("diagram", caption="", alt="") as (_, axes):
        plots.draw_diagram(axes, {"a": (0, 0, text), "b": (1, 1, "b")}, [("a", "b", "label", 1.0)])
    assert {shown_text for shown_text, _ in svg_texts(shown[0].html)} == {text, "b", "label"}
    assert not {"script", "img", "s"} & {tag for tag, _ in Page(shown[0].html).elements}


def test_dollar_signs_at_an_arrow_of_a_diagram_are_no_mathematics(shown):
    with plots.draw_figure("diagram", caption="", alt="") as (_, axes):
        plots.draw_diagram(axes, {"a": (0, 0, "a"), "b": (1, 1, "b")}, [("a", "b", "$x$", 1.0)])
    assert {text for text, _ in svg_texts(shown[0].html)} == {"a", "b", "$x$"}


def test_line_breaks_in_a_diagram_stay_line_breaks(shown):
    with plots.draw_figure("diagram", caption="", alt="") as (_, axes):
        plots.draw_diagram(
            axes, {"a": (0, 0, "induction\n5.1, $x$"), "b": (1, 1, "b")}, [("a", "b", "keys\nat S2", 1.0)]
        )
    assert {text for text, _ in svg_texts(shown[0].html)} == {"induction", "5.1, $x$", "b", "keys", "at S2"}


# No network


def test_no_figure_names_a_host(shown):
    draw()
    plots.show_plotly("bars", go.Figure(go.Bar(y=[1])), caption="", alt="")
    plots.show_attention("heads", ["a"], np.eye(1)[None], ["0.1"], caption="", alt="")
    assert [hosts(output.html) for output in shown] == [set(), set(), set()]


def test_a_page_ships_the_scripts_once_and_a_live_notebook_with_each_figure(shown, monkeypatch):
    def show():
        plots.show_plotly("bars", go.Figure(go.Bar(y=[1])), caption="A caption", alt="")
        plots.show_attention("heads", ["a"], np.eye(1)[None], ["0.1"], caption="A caption", alt="")

    show()
    monkeypatch.setenv("BOOK_LIVE", "1")
    show()
    page_bars, page_heads, live_bars, live_heads = (output.html for output in shown)
    assert len(page_bars) + len(page_heads) < 10_000
    assert len(live_bars) > 1_000_000
    assert len(live_heads) > 100_000
    for live in (live_bars, live_heads):
        page = Page(live)
        sources = [attributes["src"] for attributes in page.all("script") if "src" in attributes]
        assert sources == []
        assert page.texts["figcaption"] == ["A caption"]
        assert {tag for tag, _ in page.elements} == {"figure", "div", "script", "figcaption"}  # no script ended early
    calls = Page(live_heads).texts["script"]
    assert calls[-1].startswith('CircuitsVis.render("attention-heads"')


def test_equal_pictures_in_one_figure_share_no_id(shown):
    with plots.draw_figure("twins", caption="", alt="", ncols=2) as (drawing, axes):
        for panel in axes:
            drawing.colorbar(plots.draw_head_map(panel, [[0.0, 1.0]], limits=(0, 1)), ax=panel)
    ids = re.findall(r'\bid="([^"]+)"', shown[0].html)
    assert len(ids) == len(set(ids)) > 1
    assert all(re.search(rf"#{re.escape(name)}\b", shown[0].html) for name in ids if name != "twins")


def test_sets_stand_beside_their_controls_with_zero_in_sight(shown):
    effects = torch.tensor([[2.0, 4.0, 3.0], [1.0, 1.0, 2.0], [0.0, 0.5, 0.2]])
    beside = {"means": baselines.compare_with_controls(effects, seed=0)}
    beside["none"] = baselines.compare_with_controls(effects[:1], seed=0)
    plots.show_against_controls("strip", beside, unit="nats", caption="a", alt="b", own="the <best> heads")
    figure = shown[-1].html
    for text in ("means", "none", "nats", "the &lt;best&gt; heads", "controls, and their median"):
        assert text in figure
