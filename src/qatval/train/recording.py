"""What a training records of each epoch: the history, CSV tables, TensorBoard's logs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qatval.core.files import atomic_write
from qatval.core.measurements import EpochRecord
from qatval.core.stability import PRIMARY_METRIC
from qatval.core.trajectory import begins_fall
from qatval.quant.methods.part import Weights
from qatval.train.trajectory import SHARED_FILES


class EpochLog:
    """The record of a training's epochs so far, and its files in the training's folder.

    Attributes:
        history: Epochs of all weights that are scored.
        tables: Content of each CSV file, by its name in the folder.
    """

    def __init__(self, folder: Path, scored: Iterable[Weights]) -> None:
        """Begin with nothing; files come with what they hold."""
        self.history: dict[Weights, list[EpochRecord]] = {which: [] for which in scored}
        self.tables: dict[str, str] = {}
        self._folder = folder
        self._writers: dict[Weights, Any] = {}

    def add(self, which: Weights, epoch: int, seconds: float, row: Mapping[str, float]) -> None:
        """Record an epoch.

        Args:
            which: The weights that were scored.
            epoch: Its number, counted from 1.
            seconds: Since the training began.
            row: Everything that was measured, the primary metric among it.
        """
        self.append(f"{which}/results.csv", [{"epoch": epoch, "time": seconds, **row}])
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        record = EpochRecord(epoch, finite[PRIMARY_METRIC], finite, round(seconds, 3))
        self.history[which].append(record)
        self._show(which, record)

    def falls(self, which: Weights, start: float | None, fp32: float | None) -> bool:
        """Return whether a fall begins with the latest epoch of some weights.

        Args:
            which: The weights.
            start: What the training started from, None where it is not known.
            fp32: What the FP32 checkpoint has, likewise.
        """
        values = [math.nan if e.value is None else e.value for e in self.history[which]]
        return begins_fall(values if start is None else [start, *values], fp32)

    def append(self, table: str, rows: Sequence[Mapping[str, float | str]]) -> None:
        """Add rows to a CSV file, with a header where it is new."""
        present = self.tables.get(table, "")
        lines = [] if present else [",".join(rows[0])]
        for row in rows:
            cells = (v if isinstance(v, str) else f"{v:.6g}" for v in row.values())
            lines.append(",".join(cells))
        self.tables[table] = present + "\n".join(lines) + "\n"
        atomic_write(self._folder / table, self.tables[table])

    def restore(
        self, history: Mapping[Weights, Sequence[EpochRecord]], tables: Mapping[str, str]
    ) -> None:
        """Go back to an earlier record, in the files too.

        Raises:
            ValueError: If a table is none that a training writes.
        """
        known = {*SHARED_FILES, *(f"{which}/results.csv" for which in self.history)}
        if not tables.keys() <= known:
            raise ValueError(f"tables {sorted(tables.keys() - known)} are none of a training's")
        self.history = {which: list(records) for which, records in history.items()}
        self.tables = dict(tables)
        for file in self._folder.rglob("*.csv"):
            if str(file.relative_to(self._folder)) not in tables:
                file.unlink()
        for table, content in tables.items():
            atomic_write(self._folder / table, content)
        for which, records in self.history.items():
            shutil.rmtree(self._logs(which), ignore_errors=True)
            for record in records:
                self._show(which, record)

    def close(self) -> None:
        """Close TensorBoard's files."""
        for writer in self._writers.values():
            writer.close()

    def _logs(self, which: Weights) -> Path:
        return self._folder / which / "tensorboard"

    def _show(self, which: Weights, record: EpochRecord) -> None:
        """Add an epoch to TensorBoard's log."""
        from torch.utils.tensorboard.writer import SummaryWriter

        if which not in self._writers:
            self._writers[which] = SummaryWriter(str(self._logs(which)))
        writer = self._writers[which]
        for name, value in (record.metrics or {}).items():
            writer.add_scalar(name, math.nan if value is None else value, record.epoch)
        writer.flush()
