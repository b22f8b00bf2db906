"""The HTML report in a real browser (Chromium, headless)."""

from __future__ import annotations

import html
import html.parser
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qatval.analysis.comparison import compare
from qatval.analysis.runs import collect
from qatval.core import formatting
from qatval.core.summary import SUMMARY_NAME, write_summary
from qatval.data.coco import read_annotations
from qatval.data.shapes import draw_dataset
from qatval.data.subset import build_subset
from qatval.report.comparison import Written, write_comparison
from qatval.testing import build_summary, build_thresholds

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)

FINALS = {
    "baseline": (0.641, 0.652, 0.633, 0.160),
    "ema": (0.655, 0.661, 0.652, 0.648),
    "ema+qc": (0.659, 0.664, 0.655, 0.657),
    "dampen": (0.646, 0.655, 0.640, 0.651),
    "dampen+ema": (0.656, 0.662, 0.655, 0.656),
    "dampen+ema+qc": (0.660, 0.665, 0.658, 0.660),
    "fp32": (0.671, 0.668, 0.664, 0.669),
    "fp32+ema": (0.688, 0.690, 0.681, 0.688),
    "ema+bn": (0.660, 0.667, 0.659, 0.656),
    "ptq": (0.601, 0.601, 0.601, 0.601),
}
LOWER = {"baseline": (0.540, 0.552, 0.533), "ema": (0.585, 0.591, 0.582)}
# What a page can say about itself, once everything in it has been given the chance to load.
PROBE = """
<script>
(async () => {
  document.querySelectorAll("details").forEach(fold => fold.open = true);
  const images = [...document.querySelectorAll("image, img")];
  const sizes = await Promise.all(images.map(async image => {
    const copy = new Image();
    copy.src = image.getAttribute("href") || image.src;
    await copy.decode().catch(() => null);
    return copy.naturalWidth;
  }));
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  const referred = [...document.querySelectorAll("[aria-labelledby]")]
    .flatMap(element => element.getAttribute("aria-labelledby").split(" "))
    .concat([...document.querySelectorAll("use, a")].map(e => e.getAttribute("href").slice(1)));
  const wide = [...document.querySelectorAll("body *")].filter(element =>
    !element.closest(".scroll, .unseen, svg") &&
    (element.getBoundingClientRect().right > document.documentElement.clientWidth + 1 ||
     (element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1)));
  parent.postMessage({
    sizes, width: innerWidth,
    panels: [...document.querySelectorAll(".views svg use")].map(picture =>
      Math.min(picture.getBoundingClientRect().width,
               picture.closest("svg").getBoundingClientRect().width)),
    wide: wide.map(e => e.outerHTML.slice(0, 80)),
    repeated: ids.filter((id, index) => ids.indexOf(id) !== index),
    dangling: referred.filter(id => !document.getElementById(id)),
  }, "*");
})();
</script>
"""
# In a frame a page can be as narrow as a phone; Chromium's own window cannot.
FRAME = """
<!doctype html>
<iframe src="probed.html" width="{width}" height="800" style="border: 0"></iframe>
<pre></pre>
<script>
addEventListener("message", event => {{
  document.querySelector("pre").textContent = JSON.stringify(event.data);
}});
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Written:
    """Methods with their controls at two precisions, with a collapse and an incomplete run."""
    folder = tmp_path_factory.mktemp("report")
    coco = folder / "coco"
    draw_dataset(coco, seed=0, train_images=8, val_images=24, size=128)
    cache = folder / "cache"
    subset = build_subset(coco, train_images=8, val_images=24, seed=0, cache_dir=cache)
    for method, finals in FINALS.items():
        for seed, final in enumerate(finals):
            curve = [0.3, 0.48, 0.55, 0.60, 0.62, 0.63]
            afterwards = method.endswith(("+qc", "+bn"))
            curve[-1] = final - 0.004 if afterwards else final
            values = [*curve, final] if afterwards else curve
            root = folder / "runs" / f"seed{seed}" / method
            artifacts = {
                "run_root": str(root),
                "predictions": "predictions.json",
                "val_annotations": str(subset.val_annotations),
                "val_image_dir": str(subset.val.image_dir),
            }
            summary = build_summary(method, seed, values, changes={"artifacts": artifacts})
            write_summary(root, summary)
            (root / "predictions.json").write_text(json.dumps(_detections(coco, method, seed)))
    for method, finals in LOWER.items():
        for seed, final in enumerate(finals):
            more = {"mode": "w3a16", "changes": {"run_id": f"w3a16 {method} {seed}"}}
            summary = build_summary(method, seed, (0.3, 0.5, final), **more)
            write_summary(folder / "runs" / "w3a16" / f"{method}-{seed}", summary)
    write_summary(
        folder / "runs" / "stopped", build_summary("ema", 4, (0.3,), error="CUDA out of memory")
    )
    larger = {"model": {"imgsz": 160}, "run_id": "larger images"}
    write_summary(folder / "runs" / "larger", build_summary("ema", 0, changes=larger))
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / SUMMARY_NAME).write_text("{")
    runs, unreadable = collect([folder / "runs"])
    document = compare(runs, unreadable, recorded=build_thresholds(baseline=0.645, ema=0.655))
    return write_comparison(document, runs, folder / "comparison.html", cache)


def _detections(coco: Path, method: str, seed: int) -> list[dict]:
    index, _ = read_annotations(coco / "annotations" / "instances_val2017.json")
    draw = random.Random(f"{method} {seed}")
    found = []
    for at, row in enumerate(index.owners.tolist()):
        if draw.random() < 0.1:
            continue
        category = index.category_ids[index.classes[at] if draw.random() < 0.9 else 0]
        x, y, w, h = (float(v) + draw.gauss(0, 1.2) for v in index.boxes[at])
        found.append(
            {
                "image_id": int(index.image_ids[row]),
                "category_id": int(category),
                "bbox": [x, y, max(w, 2), max(h, 2)],
                "score": round(draw.uniform(0.3, 0.95), 3),
            }
        )
    return found


def browse(page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """Load a page; return its DOM after loading, and what Chromium wrote to its log."""
    result = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=10000",
            *options,
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout, result.stderr


class Tables(html.parser.HTMLParser):
    """Collects, by the row's name, the cells that carry a value: text and value."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.attribute = attribute
        self.rows: list[tuple[str, list[tuple[str, str]]]] = []
        self._cell: str | None = None

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "tr":
            self.rows.append((given.get(self.attribute) or "", []))
        if tag == "td" and "data-value" in given:
            self._cell = given["data-value"]
            self.rows[-1][1].append(("", self._cell))

    def handle_data(self, data):
        if self._cell is not None:
            text, value = self.rows[-1][1][-1]
            self.rows[-1][1][-1] = (text + data, value)

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None


def tables(dom: str, attribute: str) -> list[tuple[str, list[tuple[str, str]]]]:
    parser = Tables(attribute)
    parser.feed(dom)
    return [(name, cells) for name, cells in parser.rows if name]


def probe(report: Written, tmp_path: Path, width: int = 1280) -> dict:
    text = re.sub(r"<meta http-equiv=[^>]*>", "", report.html.read_text("utf-8"))
    (tmp_path / "probed.html").write_text(text.replace("</body>", PROBE + "</body>"), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    dom, _ = browse(frame, tmp_path / "profile", "--window-size=1400,900")
    found = re.search(r"<pre>(.+?)</pre>", dom, re.DOTALL)
    assert found, "the page did not answer"
    return json.loads(html.unescape(found[1]))


@needs_chromium
def test_there_is_no_console_message(report, tmp_path):
    _, log = browse(report.html, tmp_path / "profile")
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []


@needs_chromium
def test_every_image_loads_and_every_reference_has_its_target(report, tmp_path):
    found = probe(report, tmp_path)
    # the group of the other precision shows the same six, as the controls that it shares saw them
    assert len(found["sizes"]) == 6
    assert min(found["sizes"]) > 0
    assert found["repeated"] == []
    assert found["dangling"] == []


@needs_chromium
@pytest.mark.parametrize(("width", "least"), [(360, 270), (1280, 300)])
def test_pictures_are_large_enough_to_judge_boxes(report, tmp_path, width, least):
    panels = probe(report, tmp_path, width)["panels"]
    # six images: the truth and six methods, the truth again and four controls; and those of a group
    # with two controls
    assert len(panels) == 6 * (7 + 5 + 3)
    assert min(panels) >= least
    assert max(panels) <= min(width, 520)


@needs_chromium
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_sticks_out_of_the_page(report, tmp_path, width):
    found = probe(report, tmp_path, width)
    assert found["width"] == width
    assert found["wide"] == []


@needs_chromium
def test_the_tables_numbers_are_the_documents(report, tmp_path):
    dom, _ = browse(report.html, tmp_path / "profile")
    document = json.loads(report.json.read_text())

    expected = []
    finals = {(g, r["method"], r["seed"]): r for r in document["runs"] for g in r["groups"]}
    for group in document["groups"]:
        seeds = sorted({r["seed"] for r in document["runs"] if group["name"] in r["groups"]})
        for method in group["methods"]:
            runs = [finals.get((group["name"], method["method"], seed)) for seed in seeds]
            values = [r["final_value"] for r in runs if r and r["outcome"] != "incomplete"]
            values += [method["final_value"][key] for key in ("mean", "deviation")]
            values += [method["robust"][key] for key in ("median", "interquartile_mean")]
            expected.append((method["method"], values))
        oriented = [k for k in ("fp32_value", "ptq_value", "start_value") if group[k] is not None]
        expected += [(key, [group[key]["mean"]]) for key in oriented]
    shown = tables(dom, "data-method")
    assert [name for name, _ in shown] == [name for name, _ in expected]
    for (_, cells), (_, values) in zip(shown, expected, strict=True):
        assert [_number(value) for _, value in cells] == values
        assert [text.removesuffix(" ✕") for text, _ in cells] == [
            formatting.value(v) for v in values
        ]

    by_run = dict(tables(dom, "data-run"))
    assert by_run.keys() == {run["run_id"] for run in document["runs"]}
    for run in document["runs"]:
        values = [run["best_value"], run["final_value"]]
        assert [_number(value) for _, value in by_run[run["run_id"]]] == values


def _number(text: str) -> float | None:
    return float(text) if text else None
