"""Every report names what broke a run, where, and what repairing it brings back."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from qatval.analysis.comparison import compare
from qatval.core.measurements import Autopsy, Probe
from qatval.report import html
from qatval.report.comparison_markdown import render_comparison
from qatval.report.run_markdown import render_run
from qatval.testing import build_summary, loaded

FOUND = Autopsy(
    epoch=2,
    images=11,
    good=0.6,
    broken=0.1,
    cause="scale",
    layer="model.2.conv",
    restored=0.91,
    probes=(Probe("scale", "model.2.conv", 0.555, 0.91),),
)
SAID = "cause: a scale that left its value (model.2.conv) at epoch 2, 91.0 % restored"


def as_page(runs):
    return html.render_html(compare(runs), runs)


REPORTS = {
    "summary.md": lambda runs: render_run(runs[0].summary),
    "comparison.md": lambda runs: render_comparison(compare(runs)),
    "comparison.html": as_page,
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_cause_is_told(name):
    summary = build_summary("baseline", values=(0.6, 0.1))
    runs = [loaded(replace(summary, autopsies=(FOUND,)), Path("runs/0"))]
    told = " ".join(REPORTS[name](runs).replace("\\", "").split())
    assert SAID in told.replace("Cause:", "cause:")
