"""What a pytest session says about its runs: JUnit properties, a table, a comparison, counts.

Tests leave properties on their reports; xdist carries those to the controller, which is where a
session is summed up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qatval.analysis import thresholds
from qatval.analysis.runs import LoadedRun, collect

RUN_ROOT = "qatval_run_root"
UNAVAILABLE = "qatval_unavailable"
NOT_JUDGED = "qatval_not_judged"

_COUNTED = {
    UNAVAILABLE: "scenarios could not run",
    NOT_JUDGED: "scenarios have no recorded reference and were judged by the rules alone",
}


def run_properties(run: LoadedRun) -> list[tuple[str, object]]:
    """Return what JUnit files and the end of the session get to know of a run."""
    summary = run.summary
    return [
        (RUN_ROOT, str(run.root)),
        ("qatval_status", summary.status),
        ("qatval_final_value", summary.metrics.final_value),
        ("qatval_best_value", summary.metrics.best_value),
        ("qatval_collapsed", summary.stability.collapsed),
    ]


def show_session(terminalreporter: Any, session_dir: Path, *, update_thresholds: bool) -> None:
    """Show a session's runs, count what could not run or be judged, write the comparison beside.

    With ``update_thresholds`` the reference values are rewritten from the session's runs.
    """
    properties = [
        (name, str(value))
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
    ]
    roots = list(dict.fromkeys(Path(value) for name, value in properties if name == RUN_ROOT))
    if roots:
        runs = _show_runs(terminalreporter, session_dir, roots)
        if update_thresholds:
            path = thresholds.default_path()
            change = thresholds.update(path, [run.summary for run in runs])
            terminalreporter.write_sep("-", f"qatval: {path.name}")
            terminalreporter.write_line(change or "no change")
    for counted, title in _COUNTED.items():
        reasons = [value for name, value in properties if name == counted]
        if reasons:
            terminalreporter.write_sep("-", f"qatval: {len(reasons)} {title}")
            for reason in dict.fromkeys(reasons):
                terminalreporter.write_line(f"{reasons.count(reason)} x {reason}")


def _show_runs(
    terminalreporter: Any, session_dir: Path, roots: Sequence[Path]
) -> Sequence[LoadedRun]:
    from qatval.analysis.comparison import compare
    from qatval.report.comparison import write_comparison
    from qatval.report.terminal import terminal_table

    runs, unreadable = collect(roots)
    comparison = compare(runs, unreadable)
    written = write_comparison(comparison, runs, session_dir / "comparison.json")
    terminalreporter.write_sep("-", "qatval: runs of this session")
    terminalreporter.write_line(terminal_table(comparison))
    terminalreporter.write_line(f"report: {written.html}")
    return runs
