"""Tests of models leave none behind: each file has 9 MB, and pytest keeps three sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_checkpoint_stays(tmp_path: Path) -> Iterator[None]:
    yield
    for suffix in ("pt", "safetensors"):
        for file in tmp_path.glob(f"*.{suffix}"):
            file.unlink()
