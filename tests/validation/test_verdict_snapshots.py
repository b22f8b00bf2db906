"""Verdicts on stored summaries: what qatval said about them once, it says for ever.

The summaries under ``data/`` are files as a run leaves them behind (and one as an older tool wrote
it); a change of the schema or of a rule that would judge them differently shows here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from qatval.analysis import gate
from qatval.analysis.comparison import compare
from qatval.analysis.runs import LoadedRun, collect
from qatval.report.comparison_markdown import render_comparison
from qatval.report.run_markdown import render_run
from qatval.report.terminal import terminal_table
from qatval.testing import build_thresholds, changed, loaded

DATA = Path(__file__).parent / "data"
STORED = ("stable", "collapsed", "incomplete", "other_size", "older_tool", "float_control")


def stored(name: str) -> LoadedRun:
    (run,), unreadable = collect([DATA / name])
    assert unreadable == []
    return run


@pytest.mark.parametrize("name", STORED)
def test_a_runs_verdict(name: str, snapshot: SnapshotAssertion) -> None:
    run = stored(name)
    assert {"outcome": run.outcome, "contradiction": run.contradiction} == snapshot(name="verdict")
    assert render_run(run.summary) == snapshot(name="summary.md")


def test_the_comparison_of_them_all(snapshot: SnapshotAssertion) -> None:
    # not the shipped references: those follow what is measured
    made = build_thresholds(baseline=0.65, ema_qc=0.65)
    # the stored runs do not say where their scales came from
    entries = tuple({**r, "quantization": "w4a16 per-tensor"} for r in made.references)
    references = replace(made, references=entries)
    document = compare((stored(name) for name in STORED), recorded=references)
    text = render_comparison(document)
    assert text == snapshot(name="comparison.md")
    assert terminal_table(document) == snapshot(name="terminal")


@dataclass(frozen=True)
class GateCase:
    """Runs that open the gate, less those left out, and with one of them changed.

    Attributes:
        left_out: ``(variant, method, seed)``; None stands for any.
        changed: The run that is changed.
        changes: What is changed in it.
    """

    name: str
    opens: bool = False
    left_out: tuple[str | None, str | None, int | None] | None = None
    changed: tuple[str, str, int] = ("yolo10n", "ema+qc", 1)
    changes: Mapping[str, Any] | None = None


COLLAPSED = {
    "metrics": {"best_value": 0.5, "final_value": 0.1},
    "stability": {"final_over_best_ratio": 0.2, "collapsed": True},
    "status": "completed-failed",
}
WORTHLESS = {
    "metrics": {"best_value": 0.0, "final_value": 0.0},
    "stability": {"final_over_best_ratio": None, "collapsed": False},
    "status": "completed-failed",
}
STOPPED = {"status": "incomplete", "error": {"message": "interrupted", "stage": "training"}}
AT_3_BITS = {"quantization": {"mode": "w3a16", "weight_bit_width": 3}}


GATE_CASES = (
    GateCase("open", opens=True),
    GateCase("a variant without runs", left_out=("yolo10s", None, None)),
    GateCase("one seed", left_out=("yolo10n", "ema+qc", 1)),
    GateCase("a collapse", changes=COLLAPSED),
    GateCase("a run that never learned", changes=WORTHLESS),
    GateCase("runs that are not comparable", changes={"model": {"imgsz": 640}}),
    GateCase("a run of another precision in place of the second", changes=AT_3_BITS),
    GateCase(
        "a collapse at another precision",
        opens=True,
        changed=("yolo10n", "ema+qc", 2),
        changes=COLLAPSED | AT_3_BITS,
    ),
    GateCase("a method missing", left_out=("yolo10n", "baseline", None)),
    GateCase("an incomplete run in place of the second", changes=STOPPED),
    GateCase(
        "a collapse of another method",
        opens=True,
        changed=("yolo10s", "baseline", 0),
        changes=COLLAPSED,
    ),
)


@pytest.mark.parametrize("case", GATE_CASES, ids=lambda case: case.name)
def test_the_gate(case: GateCase, snapshot: SnapshotAssertion) -> None:
    decision = gate.decide(gate_runs(case))
    assert decision.yolo10m_allowed is case.opens
    assert decision.reasons == snapshot


def gate_runs(case: GateCase) -> Iterable[LoadedRun]:
    original = stored("stable")
    for variant in gate.REQUIRED_VARIANTS:
        for method in ("baseline", "ema", "ema+qc"):
            for seed in (0, 1, 2):
                key = (variant, method, seed)
                if case.left_out and all(
                    w in (None, k) for w, k in zip(case.left_out, key, strict=True)
                ):
                    continue
                if seed == 2 and key != case.changed:
                    continue
                summary = changed(
                    original.summary,
                    {
                        "run_id": f"{variant}-{method}-smoke-seed{seed}",
                        "model": {"variant": variant},
                        "method": {"variant": method},
                        "dataset": {"name": "coco2017", "identity": {"dataset": "coco2017"}},
                        # of each seed another training
                        "training": {"seed": seed, "trajectory": f"{variant}-smoke-{seed}"},
                        "history": [
                            {"epoch": epoch, "value": value, "metrics": {"loss": 1.0 + seed}}
                            for epoch, value in ((1, 0.512), (2, 0.604))
                        ],
                    },
                )
                if case.changes is not None and key == case.changed:
                    summary = changed(summary, case.changes)
                yield loaded(summary, original.root)


def test_the_stored_summaries_are_valid_json_and_small() -> None:
    for name in STORED:
        text = (DATA / name / "run_summary.json").read_text("utf-8")
        assert json.loads(text)
        assert len(text) < 20_000
