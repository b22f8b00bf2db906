"""Places on GPUs: spread first, never more at a time than asked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from qatval.testing.gpus import gpu_slot


def test_runs_spread_over_gpus_before_two_share_one(tmp_path: Path) -> None:
    with (
        gpu_slot(tmp_path, gpus=2, runs_per_gpu=2) as first,
        gpu_slot(tmp_path, gpus=2, runs_per_gpu=2) as second,
        gpu_slot(tmp_path, gpus=2, runs_per_gpu=2) as third,
    ):
        assert [first, second] == ["0", "1"]
        assert third == "0"
    with gpu_slot(tmp_path, gpus=2, runs_per_gpu=2) as again:
        assert again == "0"


def test_who_finds_none_free_waits(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with gpu_slot(tmp_path, gpus=1, runs_per_gpu=1):
            order.append("second")

    with gpu_slot(tmp_path, gpus=1, runs_per_gpu=1):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.15)  # it has asked for a place once or twice
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
