"""A run's exported file: made, scored by every runtime there is, and put on record.

It is scored in processes without torch, since those who are given the file may have none. The FP32
checkpoint goes the same way once for all methods of a run, to be measured beside them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
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

_QATVAL = (sys.executable, "-c", "import sys; from qatval.cli.main import main; sys.exit(main())")


@dataclass
class Deployment:
    """Exports what the methods of a run deliver, and measures the files.

    Attributes:
        reference: The FP32 checkpoint that they start from.
        checkpoint: Its file.
        subset: Whose validation images the files are scored on.
        directory: For what is not kept.
        threads: That the runtimes are given.
    """

    reference: nn.Module
    checkpoint: Path
    subset: Subset
    directory: Path
    threads: int
    _fp32: ExportedFile | None = field(default=None, init=False)

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
        if self._fp32 is None:
            self._fp32 = self._exported_reference(card)
        exported = self._exported(model, card, out, predictions)
        return DeploymentRecord(OPSET, replace(exported, file=out.name), self._fp32)

    def _exported_reference(self, card: Card) -> ExportedFile:
        origin = replace(
            card.origin, method="fp32", weights_sha256=sha256_of(self.checkpoint), value=None
        )
        card = replace(card, storage="float", weight_bits={}, activation_bits={}, origin=origin)
        return self._exported(self.reference, card, self.directory / "fp32.onnx")

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
        record = self.directory / f"{runtime}.json"
        record.unlink(missing_ok=True)
        options = {
            "annotations": self.subset.val_annotations,
            "images": self.subset.val.image_dir,
            "runtime": runtime,
            "threads": self.threads,
            "out": record,
            **({} if predictions is None else {"against": predictions}),
        }
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(
            [*_QATVAL, "score", str(file), *given], capture_output=True, text=True, check=False
        )
        if not record.exists():
            said = done.stderr.strip().rpartition("\n")[2].removeprefix("qatval: error: ")
            raise QatvalError(f"{runtime} could not score the exported file: {said}")
        return msgspec.json.decode(record.read_bytes(), type=RuntimeRecord)
