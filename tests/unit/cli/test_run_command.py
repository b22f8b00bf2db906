"""``qatval run`` with wrong input: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from qatval.cli.main import main
from qatval.core.files import sha256_of
from qatval.core.summary import load_summary, write_summary
from qatval.testing import build_summary


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded dataset."""
    from qatval.data.shapes import draw_dataset

    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(root, train_images=6, val_images=4, size=64)
    return root


@pytest.fixture
def copied(shapes: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shapes, tmp_path / "coco"))


def run(
    capsys: pytest.CaptureFixture[str], coco: Path, root: Path, *options: str
) -> tuple[int, str]:
    """Run the command with a cache of its own; return exit code and the line on stderr."""
    arguments = {
        "--variant": "yolo10n",
        "--method": "baseline",
        "--profile": "smoke",
        "--run-root": str(root),
        "--coco-root": str(coco),
        "--device": "cpu",
        "--cache-dir": str(root.parent / "cache"),
    }
    given = dict(zip(options[::2], options[1::2], strict=True))
    argv = ["run", *(part for pair in {**arguments, **given}.items() for part in pair)]
    capsys.readouterr()
    code = main(argv)
    errors = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("qatval: error:")
    ]
    assert len(errors) == 1
    return code, errors[0]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--variant", "yolo9n", "unknown variant 'yolo9n': expected one of yolo10n, yolo10s"),
        ("--method", "emma", "unknown method 'emma': expected baseline, or parts of ptq, fp32,"),
        ("--method", "qc+ema", "method 'qc+ema' is called 'ema+qc'"),
        ("--method", "ptq+ema", "without a training there is nothing to average"),
        ("--quantization", "w5", "unknown quantization 'w5': expected one of w4a16, paper"),
        ("--method", "ema,ema", "a method is given twice: ema, ema"),
        ("--profile", "tiny", "unknown profile 'tiny': expected one of smoke, short, full"),
        ("--imgsz", "100", "--imgsz must be a multiple of 32, got 100"),
        ("--primary", "emma:baseline", "unknown method 'emma': expected baseline, or parts of"),
        ("--primary", "ema:ema", "--primary must name two methods, got ema twice"),
        ("--margin", "0.01", "--until-told and --margin are for a series: give its seeds"),
        ("--variant", "yolo10s", "yolo10s has no embedded checkpoint"),
    ],
)
def test_wrong_usage(
    option: str,
    value: str,
    message: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, line = run(capsys, shapes, tmp_path / "run", option, value)
    assert code == 2
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--epochs", "-3", "expected an integer of at least 1, got -3"),
        ("--batch", "-3", "expected an integer of at least 1, got -3"),
        ("--seed", "-3", "expected an integer in 0..2147483647, got -3"),
        ("--weight-bits", "9", "expected an integer in 2..8, got 9"),
        ("--weight-bits", "16", "expected an integer in 2..8, got 16"),
        ("--boundary-bits", "1", "expected an integer in 2..8, got 1"),
        ("--activation-bits", "12", "expected an integer in 2..8, or 16 for float, got 12"),
        ("--activation-bits", "four", "expected an integer, got 'four'"),
        ("--primary", "ema", "expected METHOD:REFERENCE, e.g. ema+qc:baseline, got 'ema'"),
        ("--primary", "a:b:c", "expected METHOD:REFERENCE, e.g. ema+qc:baseline, got 'a:b:c'"),
        ("--seeds", "9..0", "expected seeds such as 0,1,2 or 0..9, at most 1000, got 9..0"),
        ("--seeds", "0..1000", "expected seeds such as 0,1,2 or 0..9, at most 1000, got 0..1000"),
        ("--seeds", "0..2,1", "a seed is given twice: 0..2,1"),
        ("--seeds", "0..x", "expected an integer, got 'x'"),
        ("--seeds", "0..1..2", "expected an integer, got '1..2'"),
    ],
)
def test_numbers_out_of_range(
    option: str,
    value: str,
    says: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(capsys, shapes, tmp_path / "run", option, value)
    assert exit_.value.code == 2
    assert f"argument {option}: {says}" in capsys.readouterr().err


def failed(root: Path, line: str) -> None:
    """The run root says the same as the terminal, and holds no artifacts."""
    summary = load_summary(root)
    assert summary.status == "incomplete"
    assert summary.error is not None
    assert summary.error.message in line
    assert not list(root.parent.glob("**/.training-*"))


def test_missing_coco_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run(capsys, tmp_path / "nowhere", tmp_path / "run")
    assert code == 1
    assert "nowhere" in line
    failed(tmp_path / "run", line)


@pytest.mark.parametrize("named", ["nowhere.pt", "models/shapes/other.safetensors"])
def test_missing_checkpoint_that_was_named(
    named: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = run(capsys, shapes, tmp_path / "run", "--checkpoint", named)
    assert code == 1
    assert f"checkpoint {named} not found: name a .pt or .safetensors file" in line
    failed(tmp_path / "run", line)


def test_missing_embedded_checkpoint(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qatval.core.checkout.checkout", lambda: None)  # as from a wheel
    monkeypatch.chdir(tmp_path)
    _, line = run(capsys, shapes, tmp_path / "run")
    assert "comes with qatval's repository" in line
    assert "fetch" not in line
    failed(tmp_path / "run", line)


def test_missing_official_checkpoint(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "qatval-dataset.json").unlink()
    _, line = run(capsys, copied, tmp_path / "run", "--variant", "yolo11n")
    assert "'qatval checkpoints fetch yolo11n'" in line
    failed(tmp_path / "run", line)


def test_a_full_disk_is_the_reason_whoever_says_so(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pipeline(*_: object) -> None:
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("qatval.run.runner._pipeline", lambda: pipeline)
    code, line = run(capsys, shapes, tmp_path / "run")
    assert code == 1
    assert "a disk is full" in line
    failed(tmp_path / "run", line)


def test_a_cache_on_a_full_disk(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(path: Path, arrays: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qatval.data.cache.save_arrays", save)
    cache = tmp_path / "cache"
    command = ["dataset", "build", "--profile", "smoke", "--coco-root", str(shapes)]
    assert main([*command, "--cache-dir", str(cache)]) == 1
    assert "the cache's disk is full" in capsys.readouterr().err
    assert [path.name for path in cache.rglob("*") if path.is_file()] in ([], ["lock"])


def test_a_terminal_that_knows_only_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        write_summary(tmp_path / "läufe" / str(seed), build_summary("ema", seed))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    out = tmp_path / "übersicht.md"
    assert main(["summarize", str(tmp_path / "läufe"), "--out-path", str(out)]) == 0
    sys.stdout.flush()
    assert b"ema" in written.getvalue()
    assert "ema" in out.read_text("utf-8")


def test_broken_json(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copied / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text()[:1000])
    code, line = run(capsys, copied, tmp_path / "run")
    assert code == 1
    assert "instances_train2017.json" in line
    failed(tmp_path / "run", line)


def test_annotation_without_its_image(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "annotations" / "instances_val2017.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["image_id"] = 424242
    file.write_text(json.dumps(document))
    code, line = run(capsys, copied, tmp_path / "run")
    assert code == 1
    assert "424242" in line
    assert "instances_val2017.json" in line
    failed(tmp_path / "run", line)


def test_missing_image_file(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = next((copied / "train2017").iterdir())
    gone.unlink()
    code, line = run(capsys, copied, tmp_path / "run")
    assert code == 1
    assert gone.name in line
    failed(tmp_path / "run", line)


def test_checkpoint_that_is_none(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pt").write_text("not a checkpoint")
    code, line = run(capsys, shapes, tmp_path / "run", "--checkpoint", str(tmp_path / "x.pt"))
    assert code == 1
    assert "x.pt is not a loadable checkpoint" in line
    failed(tmp_path / "run", line)


def test_gpu_that_is_not_there(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = run(capsys, shapes, tmp_path / "run", "--device", "99")
    assert code == 1
    assert "--device 99 asks for a GPU that is not there" in line
    failed(tmp_path / "run", line)


def test_finished_run_root(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_summary(tmp_path / "run", build_summary("baseline"))
    before = (tmp_path / "run" / "run_summary.json").read_bytes()
    code, line = run(capsys, shapes, tmp_path / "run")
    assert code == 1
    assert "already holds a finished run" in line
    assert (tmp_path / "run" / "run_summary.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_run_root(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, line = run(capsys, shapes, tmp_path / "locked" / "run")
    assert code == 1
    assert "cannot write" in line


def test_run_root_below_a_file(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, line = run(capsys, shapes, tmp_path / "file" / "run")
    assert code == 1
    assert "cannot write" in line
    assert "give a folder you may write to" in line


def test_gated_variant_needs_a_gate_root(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tmp_path / "m.pt")
    code, line = run(
        capsys, shapes, tmp_path / "run", "--variant", "yolo10m", "--checkpoint", checkpoint
    )
    assert code == 1
    assert "yolo10m is behind the stage gate" in line
    assert "behind the stage gate" in (tmp_path / "run" / "summary.md").read_text()


def test_gated_variant_is_refused_with_the_reason(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    options = ("--variant", "yolo10m", "--gate-root", str(tmp_path / "runs"))
    code, line = run(
        capsys, shapes, tmp_path / "run", *options, "--checkpoint", str(tmp_path / "m.pt")
    )
    assert code == 1
    assert "the stage gate for yolo10m is closed: yolo10n:" in line
    assert "yolo10s:" in (tmp_path / "run" / "summary.md").read_text()


def evidence(root: Path, dataset: str, annotations: dict[str, str] | None = None) -> None:
    """What opens the gate: every method on two seeds of both variants."""
    identity = {} if annotations is None else {"annotations": annotations}
    for variant in ("yolo10n", "yolo10s"):
        for method in ("baseline", "ema", "ema+qc"):
            for seed in (0, 1):
                summary = build_summary(
                    method,
                    seed,
                    variant=variant,
                    dataset=dataset,
                    changes={"dataset": {"identity": identity}},
                )
                write_summary(root / f"{variant} {method} {seed}", summary)


def test_the_gate_wants_evidence_of_what_is_to_be_trained_on(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--variant", "yolo10m", "--checkpoint", str(tmp_path / "m.pt"), "--gate-root")
    evidence(tmp_path / "elsewhere", "coco2017")
    code, line = run(capsys, shapes, tmp_path / "run", *options, str(tmp_path / "elsewhere"))
    assert code == 1
    assert "(of another dataset than what is to be trained on)" in line
    digests = {
        split: sha256_of(shapes / "annotations" / f"instances_{split}2017.json")
        for split in ("train", "val")
    }
    evidence(tmp_path / "here", "shapes-01234567", digests)
    code, line = run(capsys, shapes, tmp_path / "other run", *options, str(tmp_path / "here"))
    assert f"checkpoint {tmp_path / 'm.pt'} not found" in line  # past the gate


def test_the_gate_is_closed_by_what_cannot_be_read(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence(tmp_path / "runs", "coco2017")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run_summary.json").write_text('{"status": "compl')
    options = ("--variant", "yolo10m", "--checkpoint", str(tmp_path / "m.pt"))
    root = ("--gate-root", str(tmp_path / "runs"))
    _, line = run(capsys, shapes, tmp_path / "run", *options, *root)
    assert "evidence cannot be used: " in line


def test_a_gated_variant_without_its_dataset_is_told_so(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "annotations" / "instances_val2017.json").unlink()
    evidence(tmp_path / "runs", "coco2017")
    options = ("--variant", "yolo10m", "--checkpoint", str(tmp_path / "m.pt"))
    root = ("--gate-root", str(tmp_path / "runs"))
    code, line = run(capsys, copied, tmp_path / "run", *options, *root)
    assert code == 1
    assert "instances_val2017.json" in line
