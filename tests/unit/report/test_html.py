"""What the HTML report holds; how it looks is checked in a browser, see tests/validation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from qatval.analysis.comparison import compare
from qatval.analysis.runs import Unreadable
from qatval.analysis.sequential import plan
from qatval.report import html
from qatval.report.drawing import SERIES, styles
from qatval.report.images import Box, Example, ExampleImages, Panel
from qatval.testing import (
    build_deployment,
    build_summary,
    build_thresholds,
    loaded,
    reduced_to_required,
)


class Element:
    """A part of a page with what lies in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.parts: list[Element | str] = []

    def __iter__(self) -> Iterator[Element]:
        for part in self.parts:
            if isinstance(part, Element):
                yield part
                yield from part

    @property
    def text(self) -> str:
        pieces = [part if isinstance(part, str) else part.text for part in self.parts]
        return " ".join(" ".join(pieces).split())

    def all(self, *tags: str, **wanted: str) -> list[Element]:
        """Return what lies in it of some tags and of a class (`of`) or other attributes."""
        of, more = wanted.pop("of", ""), wanted.items()
        return [
            e
            for e in self
            if e.tag in tags
            and set(of.split()) <= set((e.attributes.get("class") or "").split())
            and all(e.attributes.get(name.replace("_", "-")) == value for name, value in more)
        ]

    def one(self, *tags: str, **wanted: str) -> Element:
        (found,) = self.all(*tags, **wanted)
        return found


class Page(HTMLParser):
    """Builds the tree of a page, and fails on a tag that is closed where it was not opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("page", {})]
        self.feed(text)
        assert [element.tag for element in self.open] == ["page"]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].parts.append(element)
        if tag not in ("meta", "link"):
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].parts.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].parts.append(data)


@pytest.fixture
def render():
    def make(*wanted, **more):
        runs = [loaded(build_summary(**keywords)) for keywords in wanted]
        return html.render_html(compare(runs, **more), runs)

    return make


@pytest.fixture
def parsed(render):
    return lambda *wanted, **more: Page(render(*wanted, **more)).open[0]


DISPUTED = {"failed_checks": [{"name": "reload", "detail": "the file scores otherwise"}]}


def on_seeds(count, *methods, **more):
    return [{"method": m, "seed": seed, **more} for m in methods for seed in range(count)]


def rows_of(answer):
    """Return what the short answer says: its rows by their names, each as its lines."""
    return {
        row.one("dt").text: [line.text for line in row.one("dd").all("li")]
        for row in answer.one("dl", of="answer").all("div")
    }


CONTROLLED = ("baseline", "ema", "fp32", "fp32+ema")


def test_it_loads_nothing_and_runs_nothing(render):
    page = render({"method": "baseline"}, {"method": "ema+qc"})
    assert not re.search(r"https?://|<script|@import|<link rel=.stylesheet", page)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_outcome_is_the_headline(parsed):
    def headline(*wanted):
        return parsed(*wanted).one("h1").text

    good, bad = {"seed": 0}, {"seed": 1, "values": (0.2, 0.5, 0.1)}
    poor = {"seed": 1, "values": (0.2, 0.3, 0.3)}
    stopped = {"seed": 2, "values": (0.2,), "error": "interrupted"}
    assert headline(good, {"seed": 3}) == "All 2 completed runs held"
    assert headline(good, poor) == "All 2 completed runs held, 1 below half of FP32"
    assert headline(good, bad) == "1 of 2 completed runs collapsed"
    assert headline(good, stopped) == "The run held"
    assert headline(stopped) == "No run was completed"
    assert headline() == "No run was completed"


def test_the_answer_comes_first_the_gate_and_all_runs_last(parsed):
    page = parsed(*on_seeds(3, *CONTROLLED))
    titles = [h.text for h in page.all("h2", "h3")]
    assert titles == [
        "yolo10n/shapes/smoke",
        "In short",
        "Methods",
        "What it costs",
        "Gains net of their controls",
        "Method against method",
        "What the methods see",
        "Quantized layers",
        "Run by run",
        "✕ The yolo10m gate is closed",
        "All runs",
    ]
    assert page.one("nav").one("a", href="#gate").text == "yolo10m gate: closed"


def test_what_methods_cost_stands_beside_fp32_and_says_how_it_was_computed(parsed):
    runs = on_seeds(2, "ema", changes={"deployment": build_deployment()})
    page = parsed(*runs, {"method": "ptq"})
    table, *of_runs = page.all("table", of="costs")
    rows = [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]
    assert rows[0][:3] == ["Method", "mAP 50-95", "Of FP32"]
    assert rows[1][4:7] == ["ONNX, int4", "1.28 MB", "13.4 %"]
    assert rows[1][8:] == ["ONNX Runtime", "8.12 ms (8.03 to 8.33)", "118 MiB"]
    assert rows[2] == [*[""] * 8, "OpenVINO", "8.12 ms (8.03 to 8.33)", "164 MiB"]
    assert rows[3][0] == "ptq"
    assert rows[4][0] == "FP32 checkpoint"
    assert rows[4][4:7] == ["ONNX, float", "9.57 MB", ""]
    said = [line.text for line in page.all("p", of="note")]
    honest = [line for line in said if "int4 is how the file stores weights" in line]
    assert len(honest) == 1 + len(of_runs) == 3
    assert honest[0].startswith("ONNX Runtime 1.32.0 and OpenVINO 2026.4.1 computed all 94 ")
    assert of_runs[0].all("tr")[1].text.startswith("exported ONNX Runtime 1.32.0, 1 thread 0.640")


def test_headings_leave_out_no_level_and_every_table_has_a_caption(parsed):
    exported = {"method": "ema+qc", "seed": 4, "changes": {"deployment": build_deployment()}}
    page = parsed(*on_seeds(3, *CONTROLLED), {"method": "ema+qc", "mode": "w3a16"}, exported)
    levels = [int(e.tag[1]) for e in page if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(table.all("caption") for table in page.all("table"))
    ids = [e.attributes["id"] for e in page if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_the_answer_says_what_held_and_what_is_kept(parsed):
    runs = on_seeds(3, "ema", "fp32", "fp32+ema", "ema+bn", "ptq")
    runs += on_seeds(2, "baseline")
    runs += [
        {"method": "baseline", "seed": 2, "values": (0.2, 0.6, 0.1)},
        {"method": "ema+qc", "values": (0.2,), "error": "interrupted"},
    ]
    said = rows_of(parsed(*runs))
    assert said["What held"][:3] == [
        "✕ 1 of 3 collapsed : baseline",
        "3 of 3 held : ema, 4 controls",
        "1 incomplete : ema+qc",
    ]
    assert said["What held"][3] == "1 of 3 collapsed: the rate is between 1 % and 91 % (baseline)"
    assert "Whether ema collapses more or less often than baseline is open" in str(said)
    assert said["Keeps of FP32"] == ["baseline 67%", "ema 94%"]


def test_controls_alone_answer_for_themselves(parsed):
    said = rows_of(parsed(*on_seeds(2, "fp32", "fp32+ema")))
    held, rate = said["What held"]
    assert held == "2 of 2 held : fp32, fp32+ema"
    assert rate.startswith("0 of 2 collapsed: the rate is below 78 %; one that")
    assert said["Keeps of FP32"] == ["fp32 94%", "fp32+ema 94%"]


def told(*, ema, bn):
    """Return runs whose gains over the baseline are nearly equal on three seeds."""
    finals = {"baseline": 0.5, "ema": 0.5 + ema, "bn": 0.5 + bn}
    return [
        {"method": m, "seed": seed, "values": (0.4, 0.4, final + 0.001 * seed), "resamples": 0}
        for m, final in finals.items()
        for seed in range(3)
    ]


def test_the_answer_has_the_sentences_that_tell_and_counts_the_others(parsed):
    page = parsed(*told(ema=0.05, bn=0.0))
    better, others = rows_of(page)["Told apart"]
    assert better.startswith("ema is better than baseline on 3 of 3 seeds, +0.050")
    assert others == "Not told apart: 1 of 2 comparisons."
    assert any(line.text.startswith("3 seeds do not tell bn from") for line in page.all("li"))


def test_what_is_shown_to_be_alike_is_no_open_question(parsed):
    said = rows_of(parsed(*told(ema=0.05, bn=0.0), margin=0.01))["Told apart"]
    assert said[1:] == ["Alike within 0.01: bn and baseline."]
    nothing = rows_of(parsed(*told(ema=0.0, bn=0.0), margin=0.01))["Told apart"]
    assert nothing[1] == "Alike within 0.01: ema and baseline, bn and baseline."


def test_differences_of_controls_are_counted_in_the_answer(parsed):
    said = rows_of(parsed(*told(ema=0.0, bn=0.05)))["Told apart"]
    assert said == [
        "Told apart as well, see below: 1 difference of controls.",
        "Not told apart: 1 of 2 comparisons.",
    ]


def test_the_numbers_behind_every_sentence_are_a_table(parsed):
    page = parsed(*told(ema=0.05, bn=0.0))
    (table,) = page.all("table", of="contrasts")
    head, *rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tr")]
    assert head[:5] == ["Contrast", "Mean", "95 % interval", "P", "Corrected p"]
    assert [row[0] for row in rows] == ["ema − baseline", "bn − baseline"]
    assert rows[0][1] == "+0.050"
    assert rows[0][-1] == "3 of 3 seeds (29 % to 100 %)"
    assert {"Median", "IQM"} <= {cell.text for cell in page.all("th")}


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (on_seeds(1, "baseline", "ema"), "one seed shows no spread."),
        (on_seeds(2, "baseline", "ema"), "no corrected p-value of 1 test is 0.05 or less."),
        (on_seeds(3, *CONTROLLED), "no corrected p-value of 3 tests is 0.05 or less."),
        (on_seeds(3, "ema"), "no two of these methods held on a seed in common."),
        (
            [
                *on_seeds(3, "baseline", "ema")[:5],
                {"method": "ema", "seed": 2, "changes": DISPUTED},
            ],
            "a disputed value is behind every difference.",
        ),
    ],
)
def test_where_nothing_is_told_apart_the_answer_says_why(parsed, runs, why):
    assert rows_of(parsed(*runs))["Told apart"] == [f"Nothing is told apart: {why}"]


def test_a_planned_series_is_said_of_the_group_and_of_each_run(parsed):
    planned = {
        "primary": {"method": "ema", "reference": "baseline"},
        "series": msgspec.to_builtins(plan(range(4), 0.005)),
    }
    page = parsed(*on_seeds(3, "baseline", "ema", changes=planned))
    (facts,) = page.all("p", of="facts")
    assert facts.text.endswith(
        "Planned series: look 1 of 2 (level 0.019), after 3 of 4 seeds; margin 0.005"
    )
    said = [it.text for it in page.all("dd") if "planned" in it.text]
    assert sorted(said) == [
        *["before the first of 2 looks, seed 1 of 4 planned; margin 0.005"] * 2,
        *["before the first of 2 looks, seed 2 of 4 planned; margin 0.005"] * 2,
        *["look 1 of 2 (level 0.019), seed 3 of 4 planned; margin 0.005"] * 2,
    ]


def test_without_a_plan_no_series_is_said(render):
    text = render(*on_seeds(3, "baseline", "ema"))
    assert "Planned series" not in text
    assert "<dt>planned series</dt>" not in text


def test_whether_a_training_is_needed_is_answered_where_it_was_measured(parsed):
    page = parsed(*on_seeds(3, "ema", "ptq"))
    (said,) = rows_of(page)["Is a training needed?"]
    assert said.startswith("Training or not, at w4a16: ema (the only method) against ptq")
    assert "Is a training needed?" not in rows_of(parsed(*on_seeds(3, "ema")))


def test_warnings_come_before_the_groups(parsed):
    page = parsed(*on_seeds(1, "ema", "ema"), unreadable=[Unreadable(Path("x"), "x is cut off")])
    first, second = page.all("h2")[:2]
    assert (first.text, second.text) == ("Take note", "yolo10n/shapes/smoke")
    notes = [line.text for line in page.one("section", of="warnings").all("li")]
    assert notes[0] == "Not read: x is cut off"
    assert "counted once" in notes[1]


MANY = (
    *("baseline", "ema", "ema+qc", "dampen", "dampen+ema", "dampen+ema+qc", "freeze", "distill"),
    *("distill+ema", "distill+ema+qc", "freeze+ema", "freeze+ema+qc", "ema+shift"),
    *("fp32", "fp32+ema", "fp32+ema+qc", "fp32+distill", "bn", "ema+bn", "ptq", "ptq+shift"),
)


def test_no_two_methods_are_drawn_alike(parsed):
    page = parsed(*({"method": method} for method in MANY))
    rows = [row for row in page.all("tr") if row.attributes.get("data-method") in MANY]
    drawn = {row.attributes["data-method"]: sample(row) for row in rows}
    assert len(drawn) == len(MANY)
    assert len(set(drawn.values())) == len(MANY)
    without_colour = {re.sub(r"c\d ?", "", " ".join(style)) for style in drawn.values()}
    assert len(without_colour) == len(MANY)
    controls = {row.attributes["data-method"] for row in rows if "hollow" in sample(row)[0]}
    assert controls == set(MANY[MANY.index("fp32") :])
    for article in page.all("article"):
        method = article.one("h4").text.partition(",")[0]
        assert sample(article.one("h4")) == drawn[method]


def sample(element):
    """Return how a method is drawn beside its name: classes of its line, and its marker."""
    line, marker = element.one("svg", of="sample").all("path")
    return line.attributes["class"], re.sub(r"^M\S+ \d+", "", marker.attributes["d"])


def colours(css, *, dark):
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    text = blocks[0] + (blocks[1] if dark else "")
    found = re.findall(r"--(\w+): #([0-9a-f]{6});", text)
    return {name: [int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)] for name, code in found}


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it."""
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in x]
        for x in (one, other)
    ]
    light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_style_is_defined_and_stands_out(dark):
    css = files("qatval.report").joinpath("report.css").read_text("utf-8")
    by_name = colours(css, dark=dark)
    used = {*styles(dict.fromkeys(MANY, "method")).values(), *SERIES}
    assert {style.dash for style in used} <= {0, *map(int, re.findall(r"\.d(\d) \{", css))}
    for colour in {style.colour for style in used}:
        name = re.search(rf"\.c{colour} \{{ --own: var\(--(\w+)\)", css)[1]
        greyish = [
            0.6 * own + 0.4 * grey
            for own, grey in zip(by_name[name], by_name["quiet"], strict=True)
        ]
        for ground in ("ground", "card"):
            assert contrast(by_name[name], by_name[ground]) >= 3
            assert contrast(greyish, by_name[ground]) >= 3


def example(number: int, methods) -> Example:
    boxes = [Box(1, 1, 5, 5, "found", "circle 0.91"), Box(9, 9, 5, 5, "missed", "star")]
    panels = [Panel(name, "1 found", boxes, [(1, 2), (3, 4)]) for name in ("truth", *methods)]
    return Example(number, f"image-{number}", f"data:image/jpeg;base64,{number}", 9, 9, 1, panels)


@pytest.fixture
def six_images(monkeypatch):
    def read(runs, cache_dir):
        methods = list(dict.fromkeys(run.method for run in runs))
        return ExampleImages(0, [example(number, methods) for number in range(6)], ["one left out"])

    monkeypatch.setattr(html, "example_images", read)


def seen(figures):
    return [figure.one("figcaption").one("strong").text for figure in figures]


def folded(page):
    return [e for fold in page.all("details") for e in fold.all("figure") if e.all("use")]


@pytest.mark.usefixtures("six_images")
def test_three_images_are_open_and_each_is_held_once(parsed):
    page = parsed({"method": "ema"}, {"method": "ema", "mode": "w3a16", "changes": {"run_id": "2"}})
    assert "one left out" in page.text
    assert [e.attributes["id"] for e in page.all("image")] == [f"image-{n}" for n in range(6)]
    first, second = page.all("section", of="group")
    for group in (first, second):
        used = [use.attributes["href"] for use in group.all("use")]
        assert used == [f"#image-{n}" for n in range(6) for _ in ("truth", "ema")]
        (more,) = [d for d in group.all("details") if d.all("summary")[0].text == "3 more images"]
        assert {use.attributes["href"] for use in more.all("use")} == {
            f"#image-{n}" for n in (3, 4, 5)
        }


@pytest.mark.usefixtures("six_images")
def test_of_many_methods_the_images_of_the_controls_are_folded(parsed):
    few, many = ("baseline", "ema", "fp32", "fp32+ema", "bn"), ("baseline", "ema", *MANY[-6:])
    page = parsed(*({"method": method} for method in few))
    assert seen(folded(page)) == ["truth", *few] * 3
    page = parsed(*({"method": method} for method in many))
    views = page.all("div", of="views")
    assert seen(views[0].all("figure")) == ["truth", "baseline", "ema"]
    assert seen(views[1].all("figure"))[0] == "truth"
    assert set(seen(views[1].all("figure"))[1:]) == set(many[2:])
    assert all(figure in folded(page) for figure in views[1].all("figure"))
    assert not any(figure in folded(page) for figure in views[0].all("figure"))


@pytest.mark.usefixtures("six_images")
def test_boxes_have_the_numbers_of_their_labels(parsed):
    figure = parsed({"method": "ema"}).all("div", of="views")[0].all("figure")[1]
    assert [number.text for number in figure.all("text")] == ["1", "2"]
    assert [label.text for label in figure.one("ol").all("li")] == ["circle 0.91", "star, missed"]
    assert [t.text for t in figure.all("title")] == ["1 circle 0.91", "2 star, missed"]


def test_missing_images_are_said_to_be_missing(render):
    assert "No run recorded its detections, or they are no longer where they were." in render({})


def charts(page):
    return [h.text for article in page.all("article") for h in article.all("h5")]


def test_a_run_has_its_charts(parsed):
    assert charts(parsed({"method": "ema+qc"})) == [
        "mAP 50-95 per epoch",
        "Loss per epoch",
        "What QC changed: gamma",
        "What QC changed: beta",
        "Oscillation: weights",
        "Oscillation: steps",
        "Oscillation: layers",
        "BatchNorm drift",
    ]


def test_oscillation_and_batchnorm_drift_are_shown_where_they_were_recorded(parsed):
    page = parsed({"method": "baseline"})
    assert "BatchNorm drift" in charts(page)
    marks = {title.text for title in page.all("title")}
    assert {"oscillating, epoch 3: 2.6 %", "turn back, epoch 1: 0.11 %"} <= marks
    (row,) = [r for r in page.all("tr") if "1,728" in r.text]
    assert row.text.startswith("model.1.conv 1,728 2.9 %")
    older = parsed({"method": "baseline", "changes": {"oscillation": UNSET, "batchnorm": UNSET}})
    assert charts(older) == ["mAP 50-95 per epoch", "Loss per epoch"]


def test_float_controls_have_no_oscillation_and_no_untrained_model(render):
    page = render({"method": "fp32"})
    assert "Oscillation" not in page
    assert "ntrained fp32" not in page
    assert "ptq_value" not in page
    assert "weights and activations in float" in page


def test_the_untrained_model_is_a_run_without_a_history(parsed):
    page = parsed({"method": "ptq", "values": (0.6,)})
    assert "mAP 50-95 per epoch" not in charts(page)
    assert page.one("article").one("h4").text == "ptq, seed 0 ✓ held"


def test_labels_follow_the_precision(render):
    changes = {"quantization": {"boundary_bit_width": 8}}
    page = render({"method": "ema", "mode": "w3a8", "changes": changes})
    assert "Untrained w3a8" in page
    assert "3-bit weights, 8-bit activations, first and last layers at 8 bit" in page
    assert "3 convolutions at 3 bit" in page
    assert "4-bit" not in page


def test_layers_of_other_bits_are_counted_apart(render):
    layers = [
        {"name": "first", "bits": 8, "reason": None},
        {"name": "second", "bits": 3, "reason": None},
        {"name": "third", "bits": 3, "reason": None},
    ]
    changes = {"quantization": {"coverage": {"layers": layers}}}
    page = render({"method": "ema", "mode": "w3a16", "changes": changes})
    assert "2 convolutions at 3 bit, 1 at 8 bit" in page


def test_net_effects_have_their_sentence_and_their_chart(parsed):
    page = parsed(*on_seeds(3, *CONTROLLED))
    (sentence,) = [li.text for li in page.all("li") if li.text.startswith("At w4a16 ema gains")]
    assert "does not tell the two apart" in sentence
    assert "Net effects" in [h.text for h in page.all("h4")]
    assert "ema − baseline, net of fp32+ema, seed 2: +0.000" in {t.text for t in page.all("title")}
    assert "not net of every control" not in page.text


def test_dots_of_one_training_are_joined_and_no_others(parsed):
    def joins(*wanted):
        return sum(
            path.attributes["d"].count("M") for path in parsed(*wanted).all("path", of="join")
        )

    assert joins(*on_seeds(2, "baseline", "ema")) == 2
    assert joins(*on_seeds(2, "baseline", "dampen")) == 0
    assert joins(*on_seeds(2, "ptq", "ptq+shift")) == 0


def test_missing_controls_are_said_once(render):
    page = render({"method": "baseline"}, {"method": "ema"})
    assert page.count("is not net of every control: fp32 and fp32+ema are missing") == 1
    assert "Net effects" not in page


def test_controls_are_set_apart_and_a_shared_one_is_detailed_once(parsed):
    lower = {"mode": "w3a16", "changes": {"run_id": "w3"}}
    page = parsed({"method": "ema"}, {"method": "ema", **lower}, {"method": "fp32+ema"})
    assert [th.text for th in page.all("th", scope="rowgroup")] == ["Controls", "Controls"]
    assert len(page.all("tr", data_method="fp32+ema")) == 2
    assert len(page.all("article")) == 3


def test_runs_that_did_not_hold_are_open(parsed):
    bad = {"method": "ema", "seed": 1, "values": (0.2, 0.6, 0.1)}
    page = parsed({"method": "ema"}, bad, {"method": "ema", "seed": 2})
    opened = ["open" in article.all("details")[0].attributes for article in page.all("article")]
    assert opened == [False, True, False]


def test_falls_are_told_and_marked(parsed):
    fallen = {"method": "ema", "values": (0.5, 0.62, 0.2, 0.1)}
    mended = {"method": "ema+qc", "seed": 1, "values": (0.5, 0.62, 0.1, 0.61)}
    page = parsed(fallen, mended, {"method": "baseline", "seed": 2})
    said = "evaluation diverged at epoch 3"
    for article in page.all("article"):
        fell = not article.text.startswith("baseline")
        # one of mAP, one of losses
        assert len(article.all("path", of="segment fall")) == (2 if fell else 0)
        assert (said in article.text.lower()) == fell
    rows = [row for row in page.all("tr") if "data-run" in row.attributes]
    assert sorted(row.all("td")[0].text for row in rows) == [
        "✓ held",
        f"✓ held {said}, repaired by QC",
        f"✕ collapsed {said}",
    ]


def test_a_value_that_is_not_a_number_is_a_gap(parsed):
    history = [{"epoch": n, "value": v} for n, v in enumerate((0.5, None, 0.4), start=1)]
    page = parsed({"method": "baseline", "changes": {"history": history}})
    (curve,) = page.one("article").all("figure")[0].all("path", of="curve")
    assert curve.attributes["d"].count("M") == 2


def test_recorded_text_cannot_become_markup(render):
    page = render(
        {"error": "<img src=x onerror=alert(1)>", "values": (0.1,)},
        {
            "changes": {
                "run_id": "</title><script>alert(1)</script>",
                "environment": {"torch": "<b>"},
            }
        },
        unreadable=[Unreadable(Path("x"), "<script>bad</script>")],
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page


def test_references_are_said_per_group_and_beside_each_run(parsed):
    runs = {"method": "baseline", "values": (0.5, 0.6)}, {"method": "ema", "values": (0.5, 0.6)}
    page = parsed(*runs, {"method": "ema+qc"}, recorded=build_thresholds(baseline=0.6, ema=0.5))
    notes = [note.text for note in page.all("p", of="note")]
    assert "Reference not met by 1 of 3 completed runs: ema seed 0" in notes
    assert "Reference met within its tolerance by 1 of 3 completed runs" in notes
    assert "No reference recorded for 1 of 3 completed runs: judged by the rules alone" in notes
    spans = [span.text for span in page.all("span")]
    for standing in ("✕ failed", "passed", "not judged"):
        assert spans.count(standing) == 2  # in the run's details, in the table of all
    assert "final mAP 0.6000, recorded 0.5000 ± 0.0200: above what was measured" in page.text


def test_old_summaries_have_a_report():
    runs = [loaded(reduced_to_required(build_summary(m))) for m in ("baseline", "ema+qc")]
    page = html.render_html(compare(runs), runs)
    assert "No history was recorded." in page
    assert "not measured" in page


def test_of_very_many_runs_the_ones_that_did_not_hold_are_detailed(parsed):
    wanted = [{"seed": seed} for seed in range(html.DETAILED_RUNS + 4)]
    wanted[-1]["values"] = (0.2, 0.5, 0.1)
    page = parsed(*wanted)
    details = [article.one("h4").text for article in page.all("article")]
    assert len(details) == html.DETAILED_RUNS
    assert f"ema+qc, seed {html.DETAILED_RUNS + 3} ✕ collapsed" in details
    assert f"Details are shown for {html.DETAILED_RUNS} of {len(wanted)} runs" in page.text
