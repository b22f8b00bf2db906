"""Whether a run is still what it left: every flipped bit and every changed digit is found."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from qatval.analysis import gate
from qatval.analysis.comparison import compare
from qatval.analysis.evidence import additional_files
from qatval.analysis.runs import collect
from qatval.cli.main import main
from qatval.core.digests import digests_of
from qatval.core.summary import LOG_NAME, SUMMARY_NAME, RunSummary, write_summary
from qatval.testing import build_summary, loaded

ARTIFACTS = ("summary.md", "dataset/val_images.txt", "ultralytics/x/weights/integer.safetensors")


def finish(root: Path, summary: RunSummary) -> Path:
    """Leave a run as a run does."""
    for name in ARTIFACTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(random.Random(name).randbytes(5000))
    (root / LOG_NAME).write_text("started")
    own = [root / name for name in ("summary.md", "dataset", "ultralytics")]
    write_summary(root, replace(summary, files=digests_of(root, own)))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return finish(tmp_path / "run", build_summary("ema+qc"))


def differences(root: Path) -> tuple[str, ...]:
    runs, unreadable = collect([root], verify=True)
    return runs[0].differences if runs else tuple(item.reason for item in unreadable)


def test_what_a_run_left_is_whole(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert differences(root) == ()
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out == f"ok  {root}: 4 files as the run left them\n"


@pytest.mark.parametrize("name", ARTIFACTS)
def test_every_flipped_bit_of_an_artifact_is_found(root: Path, name: str) -> None:
    content, draw = (root / name).read_bytes(), random.Random(0)
    for bit in (0, 8 * len(content) - 1, *(draw.randrange(8 * len(content)) for _ in range(100))):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (root / name).write_bytes(flipped)
        assert differences(root) == (f"{name} was changed",)


def test_every_changed_digit_of_the_summary_is_found(root: Path) -> None:
    """Also where nobody asks for the artifacts."""
    text = (root / SUMMARY_NAME).read_text()
    places = [found.start() for found in re.finditer(r"\d", text)]
    for place in random.Random(0).sample(places, 400):
        digit = str((int(text[place]) + 1) % 10)
        (root / SUMMARY_NAME).write_text(text[:place] + digit + text[place + 1 :])
        runs, unreadable = collect([root])
        said = [run.differences for run in runs] + [(item.reason,) for item in unreadable]
        assert "changed" in said[0][0]


def test_what_is_missing_or_no_file_is_said(root: Path) -> None:
    (root / ARTIFACTS[0]).unlink()
    (root / ARTIFACTS[1]).unlink()
    os.mkfifo(root / ARTIFACTS[1])
    (root / ARTIFACTS[2]).unlink()
    (root / ARTIFACTS[2]).symlink_to("/dev/zero")
    assert set(differences(root)) == {
        f"{ARTIFACTS[0]} is missing",
        f"{ARTIFACTS[1]} is no file any more",
        f"{ARTIFACTS[2]} leads out of the run root",
    }


def test_additional_files_are_said_by_verify_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "notes.txt").touch()
    (root / "dataset" / "more.txt").touch()
    (root / ".DS_Store").touch()
    write_summary(root / "other run", build_summary("ema"))
    with (root / LOG_NAME).open("a") as log:
        log.write("the next method's")
    (run,), _ = collect([root], verify=True)
    assert run.differences == ()
    assert run.summary.files is not None
    assert sorted(additional_files(root, run.summary.files)) == ["dataset/more.txt", "notes.txt"]
    assert main(["verify", str(root)]) == 1
    assert capsys.readouterr().out.count("is additional") == 2


def test_a_lost_digest_of_the_summary_is_said(root: Path) -> None:
    (root / f"{SUMMARY_NAME}.sha256").unlink()
    assert differences(root) == (f"{SUMMARY_NAME}.sha256 is missing",)


@pytest.mark.parametrize("error", [None, "interrupted"])
def test_a_run_of_an_older_tool_has_no_digests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: str | None
) -> None:
    write_summary(tmp_path / "old", build_summary("ema", error=error))
    (tmp_path / "old" / f"{SUMMARY_NAME}.sha256").unlink()
    assert differences(tmp_path / "old") == ()
    assert main(["verify", str(tmp_path)]) == 0
    assert "has no digests" in capsys.readouterr().out


def test_an_incomplete_run_has_that_of_its_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_summary(tmp_path / "run", build_summary("ema", error="interrupted"))
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("ok")
    file = tmp_path / "run" / SUMMARY_NAME
    file.write_text(file.read_text().replace("interrupted", "out of luck"))
    assert main(["verify", str(tmp_path)]) == 1


def test_moved_it_is_still_whole(root: Path, tmp_path: Path) -> None:
    assert differences(root.rename(tmp_path / "elsewhere")) == ()


def test_many_differences_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(50):
        (root / f"{number}.txt").touch()
    assert main(["verify", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("30 more files that differ")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Everything that the gate asks for."""
    for variant in ("yolo10n", "yolo10s"):
        for method in ("baseline", "ema", "ema+qc"):
            for seed in (0, 1):
                finish(
                    tmp_path / "runs" / f"{variant} {method} {seed}",
                    build_summary(method, seed, variant=variant, dataset="coco2017"),
                )
    return tmp_path / "runs"


@pytest.mark.parametrize("method", ["baseline", "ema+qc"])
def test_changed_files_close_the_gate(
    runs: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(runs)]) == 0
    (runs / f"yolo10s {method} 1" / ARTIFACTS[2]).write_bytes(b"other weights")
    assert main(["gate", str(runs)]) == 3
    said = f"run yolo10s-{method}-smoke-seed1 is not what it left: {ARTIFACTS[2]} was changed"
    assert f"yolo10s: {said}" in capsys.readouterr().out.splitlines()


def test_summarize_is_strict_about_them_when_asked_to(runs: Path, tmp_path: Path) -> None:
    command = ["summarize", str(runs), "--out-path", str(tmp_path / "all.json")]
    assert main([*command, "--strict"]) == 0
    (runs / "yolo10s ema 1" / ARTIFACTS[0]).unlink()
    assert main(command) == 0
    assert main([*command, "--strict"]) == 1
    assert f"{ARTIFACTS[0]} is missing" in (tmp_path / "all.md").read_text()


def test_a_collapse_cannot_be_made_to_look_like_another_experiment() -> None:
    """A changed summary may say that it is of another precision, or was never completed."""
    for changes in ({"quantization": {"mode": "w8a16", "weight_bit_width": 8}}, {}):
        run = loaded(build_summary("ema+qc", changes=changes))
        tampered = type(run)(run.root, run.summary, run.recorded, (f"{SUMMARY_NAME} was changed",))
        decision = gate.decide([tampered])
        assert decision.reasons[0].endswith(f"is not what it left: {SUMMARY_NAME} was changed")
        (warning,) = (w for w in compare([tampered]).warnings if "not what the run left" in w)
        assert "qatval verify" in warning
