"""What the benchmarks of training share: peers timed in turn, and a table of medians."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qatval.core.environment import available_cores, machine

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PACKAGES = ("torch", "ultralytics", "brevitas", "nvidia-modelopt")


def in_turn(peers: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each peer once a round, after two rounds to warm up; seconds by peer.

    In turn, so that a machine that slows down slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds + 2):
        for name, run in peers.items():
            started = time.perf_counter()
            run()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def spread(values: Sequence[float], unit: float = 1.0) -> str:
    """Return the median and, in brackets, the quartiles."""
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values) / unit:.3g} ({low / unit:.3g}..{high / unit:.3g})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns after the first are numbers."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, alignment, *rows))


def publish(name: str, title: str, text: str) -> None:
    """Print a benchmark's result with date, machine and versions, and keep it in ``results/``."""
    document = f"# {title}\n\n{text}\n\n{provenance()}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(document, encoding="utf-8")
    print(document)


def provenance() -> str:
    """Return date, machine, load and versions as one sentence."""
    found = {package: _version(package) for package in PACKAGES}
    versions = ", ".join(f"{package} {number}" for package, number in found.items() if number)
    return (
        f"{datetime.date.today()}; {machine()['cpu']}, {available_cores()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the end; Python {platform.python_version()}, {versions}."
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
