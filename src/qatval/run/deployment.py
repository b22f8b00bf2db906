"""A run's exported file: made, scored by every runtime there is, and put on record.

It is scored in processes without torch, since those who are given the file may have none. The FP32
checkpoint goes the same way first, to be measured beside all methods of a run: what is wrong with
the packages that this takes is known before any training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec.structs import replace
from torch import nn

from qatval.core.deployment import (
    DeploymentRecord,
    ExportedFile,
    RuntimeName,
    RuntimeRecord,
    WeightStorage,
)
from qatval.core.errors import QatvalError
from qatval.core.files import sha256_of
from qatval.core.summary import RunSummary
from qatval.data.subset import Subset
from qatval.deploy.card import Card
from qatval.deploy.export.description import card_of
from qatval.deploy.export.graph import OPSET
from qatval.deploy.export.onnx_file import export_onnx
from qatval.deploy.runtimes import installed

# -P: nothing in the current folder is taken for a module
_QATVAL = (
    *(sys.executable, "-P", "-c"),
    "import sys; from qatval.cli.main import main; sys.exit(main())",
)


class Deployment:
    """Exports what the methods of a run deliver, and measures the files."""

    def __init__(
        self,
        reference: nn.Module,
        checkpoint: Path,
        summary: RunSummary,
        *,
        subset: Subset,
        directory: Path,
        threads: int,
    ) -> None:
        """Export and measure the FP32 checkpoint that the methods start from.

        Args:
            reference: It, on the CPU.
            checkpoint: Its file.
            summary: Of any of the methods, as far as it is known.
            subset: Whose validation images files are scored on.
            directory: For what is not kept.
            threads: That the runtimes are given.

        Raises:
            QatvalError: If there is no export that computes what the model does, or no score of it.
        """
        self._subset, self._directory, self._threads = subset, directory, threads
        card = card_of(summary, reference, weights_sha256=sha256_of(checkpoint), storage="float")
        self._fp32 = self._exported(reference, card, directory / "fp32.onnx")

    def of(
        self,
        model: nn.Module,
        weights: Path,
        value: float,
        predictions: Path,
        out: Path,
        summary: RunSummary,
    ) -> DeploymentRecord:
        """Export a delivered model and say what becomes of it in each runtime that is installed.

        Args:
            model: As loaded from its file, on the CPU.
            weights: That file.
            value: mAP 50-95 of it, in [0, 1].
            predictions: Its detections.
            out: The file to write, in the run's folder.
            summary: The run's, as far as it is known.

        Returns:
            The record, whose ``file`` is the name of `out`; the caller knows where its folder is.

        Raises:
            QatvalError: If there is no export that computes what the model does, or no score of it.
        """
        bits = summary.quantization.weight_bit_width
        storage: WeightStorage = "float" if bits is None else "int4" if bits <= 4 else "int8"
        card = card_of(summary, model, weights_sha256=sha256_of(weights), storage=storage)
        card = replace(card, origin=replace(card.origin, value=value))
        exported = self._exported(model, card, out, predictions)
        return DeploymentRecord(OPSET, replace(exported, file=out.name), self._fp32)

    def _exported(
        self, model: nn.Module, card: Card, out: Path, predictions: Path | None = None
    ) -> ExportedFile:
        out.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(model, card, out)
        runtimes = tuple(self._scored(name, out, predictions) for name in installed())
        return ExportedFile(
            file=None, bytes=out.stat().st_size, weights=card.storage, runtimes=runtimes
        )

    def _scored(self, runtime: RuntimeName, file: Path, predictions: Path | None) -> RuntimeRecord:
        # What the process writes is in a folder of its own, and goes with that if it is killed.
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            record = Path(folder, "record.json").absolute()
            options = {
                "annotations": self._subset.val_annotations,
                "images": self._subset.val.image_dir,
                "val-images": len(self._subset.val),  # of a list they are not as many as asked for
                "runtime": runtime,
                "threads": self._threads,
                "out": record,
                **({} if predictions is None else {"against": predictions.absolute()}),
            }
            ended = subprocess.run(
                [*_QATVAL, "score", file.absolute(), *(f"--{n}={v}" for n, v in options.items())],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "TMPDIR": str(record.parent)},
            )
            if record.exists():
                return msgspec.json.decode(record.read_bytes(), type=RuntimeRecord)
        said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise QatvalError(
            f"{runtime} could not score the exported file "
            f"({said.removeprefix('qatval: error: ')}); without --export the same command goes on"
        )
