"""What every report says of exported files: what methods cost, and what became of a run's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qatval.analysis.costs import execution, precisions, runtime_label
from qatval.analysis.document import Costs, DeliveredFile, Group, RuntimeCost
from qatval.core import formatting
from qatval.core.deployment import (
    RUNTIME_LABELS,
    DeploymentRecord,
    ExportedFile,
    Latency,
    RuntimeRecord,
)
from qatval.report.terminal import mean_of, outcome, share_of_fp32

NUMERIC = frozenset(
    ("mAP 50-95", "of FP32", "size", "of FP32's size", "minutes", "latency", "memory", "difference")
)
"""Columns of numbers."""

_COSTS = (
    *("method", "mAP 50-95", "of FP32", "outcome", "file", "size", "of FP32's size", "minutes"),
    *("runtime", "latency", "memory", "computed in"),
)
_RUN = (
    *("model", "runtime", "mAP 50-95", "difference", "latency", "memory", "computed in"),
)
