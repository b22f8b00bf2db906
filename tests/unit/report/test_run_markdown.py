"""A run's summary.md."""

import pytest

from qatval.report.run_markdown import code, escape, render_run
from qatval.testing import build_deployment, build_summary, reduced_to_required

CASES = {
    "stable": {},
    "baseline": {"method": "baseline"},
    "collapsed": {"method": "ema", "values": (0.2, 0.41, 0.012)},
    "degenerate": {"method": "baseline", "values": (0.0, 0.0)},
    "incomplete": {"error": "CUDA out of memory", "values": (0.2,)},
    "float control": {"method": "fp32+ema"},
    "re-estimated": {"method": "ema+bn"},
    "repaired": {"values": (0.5, 0.62, 0.1, 0.12, 0.61)},
    "untrained": {"method": "ptq", "values": (0.6,)},
    "exported": {"changes": {"deployment": build_deployment(0.6404)}},
    "dampened at 3 bits": {"method": "dampen+ema+qc", "mode": "w3a8", "scale": "per-channel"},
}


@pytest.mark.parametrize("case", CASES)
def test_text(snapshot, case):
    assert render_run(build_summary(**CASES[case])) == snapshot


def test_the_file_that_was_not_kept_and_what_is_not_known_of_it():
    deployment = build_deployment(weights="float", runtimes=["onnxruntime"])
    deployment["exported"]["file"] = None
    deployment["exported"]["runtimes"][0] |= {"agreement": None, "resident_mb": None}
    changes = {"deployment": deployment, "metrics": {"fp32_value": None}}
    text = render_run(build_summary(changes=changes))
    assert "- file, not kept: 1.28 MB, 13.4 % of the 9.57 MB of the FP32" in text
    assert "weights stored in float, opset 21\n\n| model" in text
    assert "8.12 ms (8.03 to 8.33) | – | float32 |" in text
    assert "| FP32 checkpoint | ONNX Runtime 1.32.0, 1 thread | 0.682 | – | 8.05 ms" in text


@pytest.mark.parametrize(
    ("case", "headline"),
    [
        ("stable", "# Stable: "),
        ("collapsed", "# Collapsed: "),
        ("degenerate", "# Failed: "),
        ("incomplete", "# Incomplete: "),
    ],
)
def test_the_stability_outcome_comes_first(case, headline):
    assert render_run(build_summary(**CASES[case])).startswith(headline)


def test_a_summary_of_an_older_tool_can_be_shown(snapshot):
    assert render_run(reduced_to_required(build_summary())) == snapshot


@pytest.mark.parametrize(("device", "where"), [("cpu", "resident"), ("0", "reserved on the GPU")])
def test_the_memory_that_a_run_took(device, where):
    changes = {"training": {"device": device, "peak_memory_mb": 1234}}
    assert f"- memory: 1234 MiB at most, {where}" in render_run(build_summary(changes=changes))


def test_an_ema_that_was_the_raw_weights_is_called_that():
    changes = {"method": {"ema": {"codes_differing_from_raw": 0.0}}}
    text = render_run(build_summary("ema", changes=changes))
    assert "not one weight code differs from the raw model's: this EMA was the raw weights" in text


def test_a_recorded_text_cannot_break_the_page():
    text = render_run(build_summary(error="<script>\n# Stable: all is well\n"))
    assert "<script>" not in text
    assert text.count("\n# ") == 0


def test_interruptions_are_told_in_a_line():
    at = "2026-01-01T00:00:00+00:00"
    changes = {"resumed": [{"at": at, "stage": "training", "steps": 1200}, {"at": at}]}
    line = (
        f"interrupted in training after 1,200 steps, goes on {at}; interrupted once, goes on {at}"
    )
    assert f"\n- interruptions: {line}\n" in render_run(build_summary(changes=changes))
    assert "interruptions" not in render_run(build_summary())


def test_warnings_stand_before_the_values():
    text = render_run(build_summary(changes={"warnings": ["2.0% were dropped", "<b>and more"]}))
    assert text.index("## Warnings\n\n- 2.0% were dropped\n- &lt;b>and more") < text.index(
        "## Accuracy"
    )
    assert "## Warnings" not in render_run(build_summary())


@pytest.mark.parametrize(
    ("model", "dataset", "line"),
    [
        ({"match": "same"}, {"train": [], "val": []}, None),
        ({"match": "mapped", "rows": [1, 0]}, None, "- classes: mapped by name from the check"),
        ({"match": "unknown"}, None, "- classes: not compared: the checkpoint or the dataset has"),
        (
            {"match": "same", "renamed": {"traffic_light": "traffic light"}},
            {"train": [], "val": ["a", "b", "c", "d"]},
            "- classes: 'traffic_light' is the checkpoint's 'traffic light'; 4 without annotation "
            "in val (a, b, c, ...)",
        ),
    ],
)
def test_how_the_classes_were_found(model, dataset, line):
    changes = {"model": {"classes": model}, "dataset": {"unlabelled": dataset}}
    text = render_run(build_summary(changes=changes))
    assert line in text if line else "- classes" not in text


PLAN = {"seeds": [3, 5, 7, 9], "levels": [0.019, 0.038]}


@pytest.mark.parametrize(
    ("seed", "margin", "line"),
    [
        (3, None, "before the first of 2 looks, seed 1 of 4 planned; no margin"),
        (7, None, "look 1 of 2 (level 0.019), seed 3 of 4 planned; no margin"),
        (9, 0.005, "look 2 of 2 (level 0.038), seed 4 of 4 planned; margin 0.005"),
        (4, 0.005, "seed 4 is none of the 4 planned; margin 0.005"),
    ],
)
def test_a_run_of_a_planned_series_says_at_which_look_it_is_seen(seed, margin, line):
    planned = PLAN if margin is None else PLAN | {"margin": margin}
    text = render_run(build_summary(seed=seed, changes={"series": planned}))
    assert f"\n- series: {line}\n" in text


def test_the_last_look_is_after_all_seeds_however_few_there_are():
    once = {"seeds": [0, 1, 2, 3], "levels": [0.05]}
    said = [render_run(build_summary(seed=seed, changes={"series": once})) for seed in (2, 3)]
    assert "before the first of 1 look, seed 3 of 4 planned" in said[0]
    assert "look 1 of 1 (level 0.05), seed 4 of 4 planned" in said[1]


def test_a_run_of_its_own_has_no_series():
    assert "- series" not in render_run(build_summary())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("yolo10n-ema+qc_seed0: +0.05 [+0.04, +0.06], 2.0% of R", None),
        ("a|b `c` *d* ~e~ $f$ \\", r"a\|b \`c\` \*d\* \~e\~ \$f\$ \\\\"[:-2]),
        ("_a_b_", r"\_a_b\_"),
        ("![i](http://e/x.png) [a][b]", r"![i\](http\://e/x.png) [a\][b]"),
        ("[a]: https://e www.e.org", r"[a\]: https\://e www\.e.org"),
        ("<img src=x> &lt;", r"&lt;img src=x> \&lt;"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("---", r"\---"),
        ("+ 5", r"\+ 5"),
        ("+0.053", None),
        ("-0.053", None),
        ("12. a", r"12\. a"),
        ("> a", r"\> a"),
        ("a\n\n# b\x1b[2J", r"a # b\\x1b[2J"),
    ],
)
def test_a_recorded_text_is_text(text, shown):
    assert escape(text) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", "`a|b`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("", "`  `"), ("a\nb", "`a b`")],
)
def test_recorded_code_ends_where_it_ends(text, shown):
    assert code(text) == shown
