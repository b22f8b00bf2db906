"""What the HTML report holds; how it looks is checked in a browser, see tests/validation."""

import re
from pathlib import Path

import pytest

from qatval.comparison import compare
from qatval.report import html
from qatval.runs import LoadedRun, Unreadable


@pytest.fixture
def render(tmp_path, make_summary):
    def make(*wanted, **more):
        runs = [LoadedRun(tmp_path, make_summary(**keywords)) for keywords in wanted]
        return html.render_html(compare(runs, **more), runs)

    return make


def test_it_loads_nothing_and_runs_nothing(render):
    page = render({"method": "baseline"}, {"method": "ema+qc"})
    assert not re.search(r"https?://|<script|@import|<link rel=.stylesheet", page)


def test_the_outcome_is_the_headline(render):
    good, bad = {"seed": 0}, {"seed": 1, "values": (0.2, 0.5, 0.1)}
    stopped = {"seed": 2, "values": (0.2,), "error": "interrupted"}
    assert "<h1>All 2 completed runs held</h1>" in render(good, {"seed": 3})
    assert "<h1>1 of 2 completed runs collapsed</h1>" in render(good, bad)
    assert "<h1>The run held</h1>" in render(good, stopped)
    assert "<h1>No run was completed</h1>" in render(stopped)
    assert "<h1>No run was completed</h1>" in render()


def test_a_run_has_its_charts(render):
    page = render({"method": "ema+qc"})
    for title in (
        "mAP 50-95 per epoch",
        "Loss per epoch",
        "What QC changed: gamma",
        "What QC changed: beta",
    ):
        assert f"<h5>{title}</h5>" in page
    assert "Oscillation" not in page


def test_oscillation_is_shown_where_it_was_recorded(render):
    history = [{"epoch": 1, "value": 0.5, "metrics": {"quant/oscillating": 0.02}}]
    page = render({"method": "baseline", "changes": {"history": history}})
    assert "<h5>Oscillation</h5>" in page
    assert "oscillating, epoch 1: 2.0 %" in page


def test_a_value_that_is_not_a_number_is_a_gap(render):
    history = [{"epoch": n, "value": v} for n, v in enumerate((0.5, None, 0.4), start=1)]
    page = render({"method": "baseline", "changes": {"history": history}})
    path = re.search(r'class="curve s0" d="(M[^"H]*)"/>', page)
    assert path
    assert path[1].count("M") == 2


def test_missing_images_are_said_to_be_missing(render):
    assert "No run recorded its detections, or they are no longer where they were." in render({})


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


def test_references_are_said_per_group_and_beside_each_run(render, recorded):
    runs = {"method": "baseline", "values": (0.5, 0.6)}, {"method": "ema", "values": (0.5, 0.6)}
    page = render(*runs, {"method": "ema+qc"}, recorded=recorded(baseline=0.6, ema=0.5))
    for sentence in (
        "Reference not met by 1 of 3 completed runs: ema seed 0",
        "Reference met within its tolerance by 1 of 3 completed runs",
        "No reference recorded for 1 of 3 completed runs: judged by the rules alone",
    ):
        assert f">{sentence}</p>" in page
    for standing in ('bad">✕ failed', 'quiet">passed', 'quiet">not judged'):
        assert page.count(f"{standing}</span>") == 2  # in the run's details, in the table of all
    assert "final mAP 0.6000, recorded 0.5000 ± 0.0200: above what was measured" in page


def test_old_summaries_have_a_report(tmp_path, make_summary, required_only):
    runs = [LoadedRun(tmp_path, required_only(make_summary(m))) for m in ("baseline", "ema+qc")]
    page = html.render_html(compare(runs), runs)
    assert "No history was recorded." in page
    assert "not measured" in page


def test_of_very_many_runs_the_ones_that_did_not_hold_are_detailed(render):
    wanted = [{"seed": seed} for seed in range(html.DETAILED_RUNS + 4)]
    wanted[-1]["values"] = (0.2, 0.5, 0.1)
    page = render(*wanted)
    assert page.count("<article") == html.DETAILED_RUNS
    assert f"ema+qc, seed {html.DETAILED_RUNS + 3} <span" in page
    assert f"Details are shown for {html.DETAILED_RUNS} of {len(wanted)} runs" in page
