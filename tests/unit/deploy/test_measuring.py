"""Time of single calls, and memory of a process that does nothing but run a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.unit.deploy.files import write_file

from qatval.core.errors import QatvalError
from qatval.deploy import measuring
from qatval.deploy.measuring import latency, resident_mb
from qatval.deploy.runtimes import open_runtime


def test_latency_is_the_median_of_enough_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    runtime = open_runtime("onnxruntime", write_file(tmp_path / "a.onnx"), threads=1)
    clock = iter(range(1000))
    # Called once at the beginning, then around each call and before the next one.
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
    found = latency(runtime)
    assert (found.calls, found.threads) == (20, 1)
    assert found.low_ms == found.median_ms == found.high_ms == 1000.0


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_memory_is_that_of_another_process(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.onnx")
    found = resident_mb("onnxruntime", path, threads=1)
    assert found is not None
    assert 20 < found < 400  # torch alone, which this process has loaded, takes more


def test_a_process_that_fails_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"none")
    with pytest.raises(QatvalError, match=r"could not be measured.*is no whole ONNX file"):
        resident_mb("onnxruntime", path, threads=1)


def test_nothing_in_the_current_folder_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "a.onnx")
    (tmp_path / "numpy.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    resident_mb("onnxruntime", path, threads=1)
