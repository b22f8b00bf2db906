"""`qatval summarize` and `qatval gate` as a user runs them."""

import json
import subprocess
import sys

import pytest

from qatval.cli.main import main
from qatval.core.schema import violations

METHODS = ("baseline", "ema", "ema+qc")


@pytest.fixture
def folder(tmp_path, write_run):
    """Everything the gate asks for."""
    for variant in ("yolo10n", "yolo10s"):
        for method in METHODS:
            for seed in (0, 1):
                write_run(f"{variant}/{seed}/{method}", variant=variant, method=method, seed=seed)
    return tmp_path / "runs"


def test_it_writes_three_files_and_prints_the_table(folder, tmp_path, capsys):
    assert main(["summarize", str(folder), "--out-path", str(tmp_path / "out" / "all.json")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "all.html",
        "all.json",
        "all.md",
    ]
    document = json.loads((tmp_path / "out" / "all.json").read_text())
    assert violations(document, "comparison") == []
    out = capsys.readouterr().out
    assert "yolo10m gate: open" in out
    assert f"report: {tmp_path / 'out' / 'all.html'}" in out


def test_a_margin_is_recorded_and_answered(folder, tmp_path, capsys):
    out = tmp_path / "all.json"
    assert main(["summarize", str(folder), "--out-path", str(out), "--margin", "0.02"]) == 0
    document = json.loads(out.read_text())
    assert document["margin"] == 0.02
    assert violations(document, "comparison") == []
    assert "within 0.02" in capsys.readouterr().out


@pytest.mark.parametrize("margin", ["0", "-0.01", "1", "nan", "half a point"])
def test_a_margin_that_is_none_is_refused(folder, tmp_path, capsys, margin):
    arguments = ["summarize", str(folder), "--out-path", str(tmp_path / "a.json")]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, f"--margin={margin}"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"expected a difference of mAP above 0 and below 1, e.g. 0.005, got '{margin}'" in error


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict"], 1)])
def test_an_unreadable_summary_is_a_warning(folder, tmp_path, write_run, capsys, options, code):
    (write_run("broken") / "run_summary.json").write_text('{"schema_version": "7.0"}')
    arguments = ["summarize", str(folder), "--out-path", str(tmp_path / "all.json"), *options]
    assert main(arguments) == code
    document = json.loads((tmp_path / "all.json").read_text())
    assert len(document["runs"]) == 12
    assert len(document["unreadable"]) == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("qatval: warning: ")
    assert "schema version 7.0" in warning


@pytest.mark.parametrize("name", ["out", "out.txt"])
def test_an_unfit_out_path_is_refused_before_anything_is_read(folder, tmp_path, capsys, name):
    assert main(["summarize", str(folder), "--out-path", str(tmp_path / name)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "expected one that ends in .json, .md, .html" in error


def test_the_same_runs_give_the_same_files(folder, tmp_path):
    written = []
    for name in ("one", "two"):
        main(["summarize", str(folder), "--out-path", str(tmp_path / f"{name}.json")])
        written.append([(tmp_path / f"{name}{s}").read_bytes() for s in (".json", ".md", ".html")])
    assert written[0] == written[1]


def test_the_gate_is_open(folder, capsys):
    assert main(["gate", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "yolo10m gate: open"


def test_the_gate_is_closed_with_a_line_per_reason(folder, write_run, capsys):
    write_run("more", method="ema+qc", seed=2, values=(0.2, 0.5, 0.1))
    assert main(["gate", str(folder)]) == 3
    assert capsys.readouterr().out.splitlines() == [
        "yolo10m gate: closed",
        "yolo10n: ema+qc run yolo10n-ema+qc-smoke-seed2 collapsed (final 0.100 of best 0.500)",
    ]


def test_incomplete_runs_close_the_gate_when_asked_to(folder, write_run):
    write_run("more", method="ema+qc", seed=2, values=(0.2,), error="interrupted")
    assert main(["gate", str(folder)]) == 0
    assert main(["gate", str(folder), "--count-incomplete"]) == 3


@pytest.mark.parametrize("command", ["summarize", "gate"])
def test_neither_loads_a_framework(folder, tmp_path, command):
    script = (
        "import sys; from qatval.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'ultralytics', 'brevitas', 'pytest'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    options = ["--out-path", str(tmp_path / "all.json")] if command == "summarize" else []
    result = subprocess.run(
        [sys.executable, "-c", script, command, str(folder), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
