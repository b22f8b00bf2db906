"""What a finished run delivered, as it lies on disk, held to the digests that the run recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qatval.core.errors import QatvalError
from qatval.core.files import inside, sha256_of
from qatval.core.summary import SUMMARY_NAME, RunSummary, read_verified


@dataclass(frozen=True)
class Delivered:
    """A run's summary and the file of the weights it is about, and their SHA-256."""

    summary: RunSummary
    summary_sha256: str
    weights: Path
    weights_sha256: str


def delivered(run: Path) -> Delivered:
    """Find the weights that a finished run delivered.

    Args:
        run: The run root.

    Raises:
        QatvalError: If it is no run root, the run is incomplete or left no weights, or a file of it
            is missing or not the one that the run left.
    """
    file = run / SUMMARY_NAME
    if not file.is_file():
        raise QatvalError(
            f"{run}: expected the folder of a finished run, with {SUMMARY_NAME} in it"
        )
    summary, _, fits = read_verified(file)
    if fits is False:
        raise QatvalError(f"{file} was changed after the run wrote it; restore it")
    if summary.status == "incomplete":
        why = summary.error.message if summary.error else "unknown"
        raise QatvalError(f"{run}: the run is incomplete ({why:.200}); let it finish first")
    recorded = summary.artifacts.weights
    if recorded is None:
        raise QatvalError(
            f"{run}: the run left no weights (status {summary.status}); give one that did not "
            "diverge"
        )
    weights = inside(run, recorded)
    if not weights.is_file():
        raise QatvalError(f"{weights}: the weights that the run left are missing; restore them")
    digest = sha256_of(weights)
    expected = (summary.files or {}).get(recorded)
    if expected is not None and expected.sha256 != digest:
        raise QatvalError(
            f"{weights} was changed after the run wrote it: SHA-256 is {digest[:16]}..., the run "
            f"recorded {expected.sha256[:16]}...; restore it"
        )
    return Delivered(summary, sha256_of(file), weights, digest)
