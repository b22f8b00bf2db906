"""What the HTML report holds; how it looks is checked in a browser, see tests/validation."""

import re
from pathlib import Path

import pytest

from qatval.analysis.comparison import compare
from qatval.analysis.runs import LoadedRun, Unreadable
from qatval.report import html


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


def test_oscillation_and_batchnorm_drift_are_shown_where_they_were_recorded(render):
    page = render({"method": "baseline"})
    titles = [f"Oscillation: {what}" for what in ("weights", "steps", "layers")]
    for title in (*titles, "BatchNorm drift"):
        assert f"<h5>{title}</h5>" in page
    assert "oscillating, epoch 3: 2.6 %" in page
    assert "turn back, epoch 1: 0.11 %" in page
    assert '<th scope="row">model.1.conv</th><td>1,728</td><td>2.9 %</td>' in page
    older = render({"method": "baseline", "changes": {"oscillation": None, "batchnorm": None}})
    assert "Oscillation" not in older
    assert "BatchNorm drift" not in older


def test_float_controls_have_no_oscillation_and_no_untrained_model(render):
    page = render({"method": "fp32"})
    assert "Oscillation" not in page
    assert "ntrained fp32" not in page
    assert "ptq_value" not in page
    assert "weights and activations in float" in page


def test_the_untrained_model_is_a_run_without_a_history(render):
    page = render({"method": "ptq", "values": (0.6,)})
    assert "mAP 50-95 per epoch" not in page
    assert "ptq, seed 0" in page


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


CONTROLLED = ("baseline", "ema", "fp32", "fp32+ema")


def test_net_effects_come_first_with_their_sentence_and_chart(render):
    page = render(*({"method": m, "seed": s} for m in CONTROLLED for s in range(3)))
    assert page.index("At w4a16 ema gains") < page.index('class="methods"')
    assert "<h4>Net effects</h4>" in page
    assert "ema − baseline, seed 2: +0.000" in page
    assert "not net of every control" not in page


def test_missing_controls_are_said_once(render):
    page = render({"method": "baseline"}, {"method": "ema"})
    assert page.count("is not net of every control: fp32 and fp32+ema are missing") == 1
    assert "<h4>Net effects</h4>" not in page


def test_controls_are_set_apart_and_a_shared_one_is_detailed_once(render):
    lower = {"mode": "w3a16", "changes": {"run_id": "w3"}}
    page = render({"method": "ema"}, {"method": "ema", **lower}, {"method": "fp32+ema"})
    assert page.count(">Controls</th>") == 2
    assert page.count('<tr data-method="fp32+ema">') == 2
    assert page.count("<article") == 3


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
