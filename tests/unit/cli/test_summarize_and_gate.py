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
                write_run(
                    f"{variant}/{seed}/{method}",
                    variant=variant,
                    dataset="coco2017",
                    method=method,
                    seed=seed,
                )
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


def test_what_cannot_be_read_closes_the_gate_with_the_reason(folder, write_run, capsys):
    """A truncated summary may be that of a collapse."""
    collapse = write_run("more", method="ema+qc", seed=2, values=(0.2, 0.5, 0.1))
    file = collapse / "run_summary.json"
    file.write_bytes(file.read_bytes()[:-200])
    assert main(["gate", str(folder)]) == 3
    state, reason = capsys.readouterr().out.splitlines()
    assert state == "yolo10m gate: closed"
    assert reason.startswith(f"evidence cannot be used: {file} ")


def edit(file, **changes):
    document = json.loads(file.read_text())
    for section, values in changes.items():
        document[section] |= values
    file.write_text(json.dumps(document))
    (file.parent / f"{file.name}.sha256").unlink(missing_ok=True)


EDITED = {
    "an mAP of 1.7": {"best_value": 1.7, "final_value": 1.7},
    "best and final of no epoch": {"best_value": 0.1, "final_value": 0.1},
}


@pytest.mark.parametrize("metrics", EDITED.values(), ids=EDITED)
def test_values_that_no_run_leaves_close_every_gate(folder, tmp_path, capsys, metrics):
    file = folder / "yolo10n" / "0" / "baseline" / "run_summary.json"
    edit(file, metrics=metrics)
    assert main(["gate", str(folder)]) == 3
    assert f"evidence cannot be used: {file} records" in capsys.readouterr().out
    main(["summarize", str(folder), "--out-path", str(tmp_path / "all.json")])
    gate = json.loads((tmp_path / "all.json").read_text())["gate"]
    assert gate["yolo10m_allowed"] is False
    assert any(str(file) in reason for reason in gate["reasons"])


def test_the_gate_and_the_comparison_decide_alike(folder, tmp_path, capsys):
    """Copies of a seed under another one, for which the whole folder stands."""
    for file in sorted(folder.glob("*/1/*/run_summary.json")):
        original = json.loads(
            (folder / file.parts[-4] / "0" / file.parts[-2] / file.name).read_text()
        )
        original["training"]["seed"] = 1
        original["run_id"] += " again"
        file.write_text(json.dumps(original))
        (file.parent / f"{file.name}.sha256").unlink(missing_ok=True)
    assert main(["gate", str(folder)]) == 3
    printed, err = capsys.readouterr()
    assert err.count("same training as") == 12 // 2
    main(["summarize", str(folder), "--out-path", str(tmp_path / "all.json")])
    document = json.loads((tmp_path / "all.json").read_text())
    assert printed.splitlines() == ["yolo10m gate: closed", *document["gate"]["reasons"]]
    assert len(document["runs"]) == 6


def test_comparisons_across_machines_are_made_where_asked_for(tmp_path, write_run, capsys):
    for seed in (0, 1, 2):
        write_run(f"baseline{seed}", method="baseline", seed=seed)
        write_run(f"ema{seed}", method="ema", seed=seed, changes={"training": {"device": "0"}})
    command = ["summarize", str(tmp_path / "runs"), "--out-path", str(tmp_path / "all.json")]
    assert main(command) == 0
    assert "not comparable with yolo10n/shapes/smoke: differs in training.device" in (
        capsys.readouterr().out
    )
    assert main([*command, "--across", "machine"]) == 0
    assert "across machines (GPU, cpu)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main([*command, "--across", "datasets"])
    assert "expected machine or versions, comma-separated" in capsys.readouterr().err
