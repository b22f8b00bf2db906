"""What a validation scenario must reach: rules (`qatval.analysis.rules`) and recorded references.

A reference holds the values that were measured for a scenario under one quantization, image size,
number of epochs and batch size, in ``thresholds.json``. It is two-sided: an unexplained
improvement fails as well, so that references stay fresh. Its tolerance is Student's 99 % prediction
interval for one more run, computed from the spread of the measured values over seeds and machines;
with fewer than three there is none, and the scenario is judged by the rules alone, which its checks
and every comparison say.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from qatval.analysis.intervals import prediction_half_width
from qatval.analysis.rules import Check, Limits, judge, missing
from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write, to_json
from qatval.core.quantization import quantization_label
from qatval.core.schema import violations
from qatval.core.summary import RunSummary

MEASUREMENTS_FOR_TOLERANCE = 3
PREDICTION_LEVEL = 0.99
LIBRARIES = ("torch", "ultralytics", "brevitas")
REFERENCE = "reference"
SCENARIO = ("dataset", "variant", "method", "profile", "quantization")
"""What names a scenario; image size, epochs and batch size are conditions of its reference."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """The content of a threshold file, see its schema, and where it was read from."""

    path: Path
    limits: Limits
    references: tuple[Entry, ...]
    waivers: tuple[Entry, ...]


def default_path() -> Path:
    """Return the threshold file that ships in the package."""
    return Path(str(files("qatval.analysis") / "thresholds.json"))


def load(path: Path | None = None) -> Thresholds:
    """Read a threshold file, by default the shipped one.

    Raises:
        QatvalError: If it cannot be read or breaks its schema.
    """
    path = path or default_path()
    document = _read(path)
    references, waivers = tuple(document["references"]), tuple(document["waivers"])
    return Thresholds(path, Limits(**document["rules"]), references, waivers)


def check(summary: RunSummary, thresholds: Thresholds, today: date | None = None) -> list[Check]:
    """Check a scenario's run.

    Args:
        summary: The run. A metric that a check needs and the run lacks fails that check.
        thresholds: What to check it against.
        today: The day on which waivers are judged, by default today's in UTC.

    Returns:
        Every check that was made, the failed ones among them; the waivers' own come last.
    """
    if summary.status == "incomplete":
        assert summary.error is not None
        return [Check("complete", "failed", f"the run is incomplete: {summary.error.message}")]
    checks = judge(summary, thresholds.limits)
    checks.append(_reference(summary, thresholds))
    return _with_waivers(checks, summary, thresholds, today or datetime.now(UTC).date())


def reference(summary: RunSummary, thresholds: Thresholds) -> Check | None:
    """Return how a run stands to its scenario's reference, None for an incomplete run."""
    return next((c for c in check(summary, thresholds) if c.name == REFERENCE), None)


def update(path: Path, summaries: Iterable[RunSummary]) -> str:
    """Record what was just measured and write the threshold file.

    Each scenario's values join the ones recorded for the same device and library versions; a value
    of the same seed and machine replaces its predecessor. Values that the recorded tolerance
    excludes replace the record altogether: they say that it is out of date. Runs without success
    are never recorded.

    Returns:
        The change as a unified diff, empty if there is none.

    Raises:
        QatvalError: If the file cannot be read or written.
    """
    document = _read(path)
    before = to_json(document)
    fresh: dict[str, tuple[Entry, list[Entry]]] = {}
    for summary in summaries:
        if summary.status == "completed-success":
            scenario, environment = _key(summary), summary.environment or {}
            measurement = {
                "seed": summary.training.seed,
                "machine": environment.get("gpu") or environment.get("cpu") or "unknown",
                "value": summary.metrics.final_value,
            }
            fresh.setdefault(_named(scenario), (scenario, []))[1].append(measurement)
    references: dict[str, Entry] = {_named(r): r for r in document["references"]}
    for name, (key, measured) in fresh.items():
        recorded = references.get(name, {"tolerance": None, "measured": []})
        limit = recorded["tolerance"]
        obsolete = limit is not None and any(
            abs(m["value"] - recorded["value"]) > limit for m in measured
        )
        references[name] = _recorded(key, [] if obsolete else recorded["measured"], measured)
    document["references"] = sorted(references.values(), key=json.dumps)
    after = to_json(document)
    if after == before:
        return ""
    atomic_write(path, after)
    texts = before.splitlines(), after.splitlines()
    names = f"{path.name} before", f"{path.name} now"
    return "\n".join(difflib.unified_diff(*texts, *names, n=2, lineterm="")) + "\n"


def _reference(summary: RunSummary, thresholds: Thresholds) -> Check:
    final = summary.metrics.final_value
    if final is None:
        return missing(REFERENCE, "final_value")
    recorded = _matching(summary, thresholds.references)
    if recorded is None or recorded["tolerance"] is None:
        some, needed = "", f"{MEASUREMENTS_FOR_TOLERANCE} needed for a tolerance"
        if recorded is not None:
            some = f" ({len(recorded['measured'])} measured, {needed})"
        what = f"no reference recorded for {_scenario(summary)}{some}"
        remedy = "judged by the rules alone; record one with 'pytest --update-thresholds'"
        return Check(REFERENCE, "not judged", f"{what}: {remedy}")
    value, tolerance = recorded["value"], recorded["tolerance"]
    detail = f"final mAP {final:.4f}, recorded {value:.4f} ± {tolerance:.4f}"
    if abs(final - value) <= tolerance:
        return Check(REFERENCE, "passed", detail)
    side = "below" if final < value else "above"
    remedy = "refresh the record with 'pytest --update-thresholds'"
    detail += f": {side} what was measured; find out why, and if it is meant to be so, {remedy}"
    return Check(REFERENCE, "failed", detail)


def _with_waivers(
    checks: list[Check], summary: RunSummary, thresholds: Thresholds, today: date
) -> list[Check]:
    judged = {check.name: check for check in checks}
    scenario = _scenario_key(summary) | {"seed": summary.training.seed}
    for waiver in thresholds.waivers:
        if any(waiver[name] != scenario[name] for name in (*SCENARIO, "seed")):
            continue
        name, label = waiver["check"], f"waiver of {waiver['check']}"
        waived = judged.get(name)
        expires, reason = waiver["expires"], waiver["reason"]
        if today > date.fromisoformat(expires):
            detail = f"expired on {expires} ({reason}): fix the cause or renew it"
            judged[label] = Check(label, "failed", detail)
        elif waived is None or not waived.failed:
            detail = f"no longer needed ({reason}): remove it from {thresholds.path.name}"
            judged[label] = Check(label, "failed", detail)
        else:
            detail = f"{waived.detail}; waived until {expires}: {reason}"
            judged[name] = Check(name, "waived", detail)
    return list(judged.values())


def _scenario_key(summary: RunSummary) -> dict[str, Any]:
    training = summary.training
    return {
        "dataset": summary.dataset.name,
        "variant": summary.model.variant,
        "method": summary.method.variant,
        "profile": training.profile,
        "quantization": quantization_label(msgspec.to_builtins(summary.quantization)),
        "imgsz": summary.model.imgsz,
        "epochs": training.epochs,
        "batch": training.batch,
    }


def _key(summary: RunSummary) -> dict[str, Any]:
    environment = summary.environment or {}
    exact = {n: str(environment[n]).split("+")[0] for n in LIBRARIES if environment.get(n)}
    versions = {name: ".".join(version.split(".")[:2]) for name, version in exact.items()}
    device = "cpu" if summary.training.device == "cpu" else "cuda"
    return _scenario_key(summary) | {"device": device, "versions": versions}


def _named(key: Entry) -> str:
    """Write as text what a reference holds for; it may record values beside."""
    beside = ("value", "tolerance", "measured")
    return json.dumps({k: v for k, v in key.items() if k not in beside}, sort_keys=True)


def _matching(summary: RunSummary, references: Iterable[Entry]) -> Entry | None:
    """Find the most specific reference: device and versions are keys where it names them."""
    key = _key(summary)
    matching = [
        r
        for r in references
        if all(r[name] == value for name, value in _scenario_key(summary).items())
        and r.get("device", key["device"]) == key["device"]
        and r.get("versions", {}).items() <= key["versions"].items()
    ]
    return max(matching, key=lambda r: ("device" in r) + len(r.get("versions", {})), default=None)


def _recorded(
    key: Mapping[str, Any], kept: Iterable[Entry], measured: Iterable[Entry]
) -> dict[str, Any]:
    by_origin = {(m["seed"], m["machine"]): m for m in (*kept, *measured)}
    merged = [by_origin[origin] for origin in sorted(by_origin)]
    values = [m["value"] for m in merged]
    enough = len(values) >= MEASUREMENTS_FOR_TOLERANCE
    tolerance = round(prediction_half_width(values, PREDICTION_LEVEL), 6) if enough else None
    mean = round(math.fsum(values) / len(values), 6)
    return {**key, "value": mean, "tolerance": tolerance, "measured": merged}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise QatvalError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise QatvalError(f"{path} is not valid JSON: {error}") from error
    if problems := violations(document, "thresholds"):
        raise QatvalError(f"{path} is not a threshold file: {problems[0]}")
    return dict(document)


def _scenario(summary: RunSummary) -> str:
    key = _key(summary)
    versions = [f"{name} {version}" for name, version in key["versions"].items()]
    named = [str(key[name]) for name in SCENARIO]
    conditions = f"{key['imgsz']} px {key['epochs']} epochs batch {key['batch']} {key['device']}"
    return " ".join([*named, conditions, *versions])
