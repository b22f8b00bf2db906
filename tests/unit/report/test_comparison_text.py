"""The comparison in the terminal and as Markdown."""

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from qatval.analysis.comparison import compare
from qatval.analysis.document import Spread
from qatval.analysis.runs import Unreadable
from qatval.analysis.sequential import plan
from qatval.report.comparison_markdown import render_comparison
from qatval.report.terminal import WIDTH, outcome, terminal_table
from qatval.testing import (
    build_deployment,
    build_summary,
    build_thresholds,
    loaded,
    reduced_to_required,
)

FINALS = {"baseline": (0.640, 0.652), "ema": (0.655, 0.661), "ema+qc": (0.659, 0.664)}


@pytest.fixture
def document():
    runs = [
        loaded(build_summary(method, seed, (0.5, 0.6, final)), Path(f"runs/{method}-{seed}"))
        for method, finals in FINALS.items()
        for seed, final in enumerate(finals)
    ]
    collapsed = build_summary("baseline", 2, (0.2, 0.5, 0.1))
    stopped = build_summary("ema", 2, (0.2,), error="CUDA out of memory")
    other = build_summary("ema", 3, changes={"model": {"imgsz": 160}, "run_id": "larger images"})
    more = [loaded(summary, Path("runs/more")) for summary in (collapsed, stopped, other)]
    broken = Unreadable(Path("runs/broken"), "runs/broken/run_summary.json is not valid JSON")
    references = build_thresholds(baseline=0.645, ema=0.650)
    return compare([*runs, *more], [broken], recorded=references)


def test_terminal(document, snapshot):
    assert terminal_table(document) == snapshot


def test_markdown(document, snapshot):
    assert render_comparison(document) == snapshot


CONTROLS = {"fp32": (0.66, 0.67, 0.65), "fp32+ema": (0.68, 0.69, 0.68), "ptq": (0.6, 0.6, 0.6)}
LOWER = {"baseline": (0.55, 0.56, 0.54), "ema": (0.6, 0.61, 0.6), "freeze": (0.56, 0.57, 0.55)}


@pytest.fixture
def controlled():
    """Methods and controls on three seeds, at two precisions that share the float controls."""
    more = {"baseline": (0.64, 0.65, 0.63), "ema": (0.65, 0.66, 0.65), **CONTROLS}
    tried = [(method, finals, "w4a16") for method, finals in more.items()]
    tried += [(method, finals, "w3a16") for method, finals in LOWER.items()]
    runs = [
        loaded(
            build_summary(
                method,
                seed,
                (0.5, 0.6, final),
                mode=mode,
                changes={"run_id": f"{mode} {method} {seed}"},
            ),
            Path(f"runs/{mode}-{method}-{seed}"),
        )
        for method, finals, mode in tried
        for seed, final in enumerate(finals)
    ]
    return compare(runs, recorded=build_thresholds())


def test_controls_and_net_effects_in_the_terminal(controlled, snapshot):
    assert terminal_table(controlled) == snapshot


def test_controls_and_net_effects_as_markdown(controlled, snapshot):
    assert render_comparison(controlled).split("## Runs")[0] == snapshot


@pytest.fixture
def exported():
    """Methods whose files were measured in two runtimes, of which one computes one in int8."""
    files = {
        "baseline": build_deployment(0.64),
        "ema+qc": build_deployment(0.66, executed={"int8": 80, "float32": 14}),
        "fp32": build_deployment(0.67, weights="float", size=9_573_000),
    }
    runs = [
        loaded(build_summary(name, seed, (0.5, 0.6, 0.64), changes={"deployment": deployment}))
        for name, deployment in files.items()
        for seed in (0, 1)
    ]
    collapsed = build_summary("baseline", 2, (0.5, 0.6, 0.1), changes={"deployment": None})
    return compare([*runs, loaded(collapsed)], recorded=build_thresholds())


def test_costs_in_the_terminal(exported, snapshot):
    text = terminal_table(exported)
    assert text[text.index("  what it costs") : text.index("  2 seeds do")] == snapshot
    assert max(map(len, text.split("yolo10m gate")[0].splitlines())) <= WIDTH


def test_costs_as_markdown(exported, snapshot):
    text = render_comparison(exported)
    assert text[text.index("What it costs:") : text.index("- 2 seeds do")] == snapshot


def test_costs_leave_the_terminal_as_it_was_where_nothing_was_exported(controlled):
    assert "costs" not in terminal_table(controlled)


def test_no_table_of_costs_where_none_are_known():
    document = compare([loaded(reduced_to_required(build_summary()))])
    assert "costs" not in render_comparison(document)


def test_the_table_fits_a_terminal_of_100_columns():
    runs = [
        loaded(build_summary(method, seed, (0.5, 0.6, final)))
        for seed in range(5)
        for method, final in {"baseline": 0.1, "ema": 0.61, "ema+qc": 0.62}.items()
    ]
    stopped = loaded(build_summary("baseline", 9, (0.5,), error="interrupted"))
    for some in (runs, [*runs, stopped]):
        document = compare(some, recorded=build_thresholds(baseline=0.6, ema=0.5, ema_qc=0.5))
        table = terminal_table(document).split("\n\n")[0]
        assert "9 more" in table
        assert "not net of every control" in table
        assert max(len(line) for line in table.splitlines()) <= WIDTH


def test_collapses_come_before_the_means(document):
    for text, mean in (
        (terminal_table(document), "spread  of FP32"),
        (render_comparison(document), "| mAP 50-95 |"),
    ):
        assert text.index("1 of 3 collapsed: the rate is between") < text.index(mean)


def test_sentences_break_within_no_number(controlled):
    lines = terminal_table(controlled).splitlines()
    assert not any(line.strip().startswith(("%", "<")) or line.endswith(" p") for line in lines)
    assert not any("\N{NO-BREAK SPACE}" in line for line in lines)


def test_a_comparison_of_nothing_can_be_shown():
    assert "closed" in terminal_table(compare([]))
    assert "closed" in render_comparison(compare([]))


def test_what_was_not_measured_is_said():
    document = compare([loaded(reduced_to_required(build_summary()))])
    assert "not measured" in terminal_table(document)
    assert "not measured" in render_comparison(document)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.6, 0.7), "2 of 2 held"),
        ((0.4, 0.7), "2 of 2 held, some below half of FP32"),
        ((0.3, 0.4), "2 of 2 held below half of FP32"),
        (None, "2 of 2 held"),
    ],
)
def test_nothing_holds_below_half_of_fp32_without_saying_so(shares, said):
    share = None if shares is None else Spread(2, 0.5, None, min(shares), max(shares))
    (method,) = compare([loaded(build_summary(seed=seed)) for seed in (0, 1)]).groups[0].methods
    assert outcome(structs.replace(method, share_of_fp32=share)) == said


def of_a_series(seeds, margin=None):
    """Return a comparison of the first seeds of a planned series of six."""
    planned = msgspec.to_builtins(plan(range(6), margin))
    recorded = {"series": planned, "primary": {"method": "ema", "reference": "baseline"}}
    return compare(
        loaded(build_summary(method, seed, (0.5, 0.6, 0.6 + gain), changes=recorded))
        for seed in range(seeds)
        for method, gain in (("baseline", 0.0), ("ema", 0.01 + seed / 5000))
    )


@pytest.mark.parametrize(
    ("seeds", "margin", "line"),
    [
        (4, None, "Planned series: look 2 of 4 (level 0.0098), after 4 of 6 seeds; no margin"),
        (6, 0.005, "Planned series: look 4 of 4 (level 0.035), after 6 of 6 seeds; margin 0.005"),
        (
            2,
            None,
            "Planned series: no look of its plan (2 of 6 seeds), which claims nothing; no margin",
        ),
    ],
)
def test_a_planned_series_says_its_look_level_and_margin(seeds, margin, line):
    document = of_a_series(seeds, margin)
    assert f"\n\n{line}\n\n" in render_comparison(document)
    assert f"\n  {line}\n" in terminal_table(document)


def test_runs_without_a_plan_are_at_no_look(document):
    assert "Planned series" not in render_comparison(document) + terminal_table(document)
