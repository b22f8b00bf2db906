"""The stage gate `yolo10m_allowed`: may the expensive variant be trained.

It opens when, for each variant that yolo10m requires (presets/variants.toml), the method under test
has held: at least two ``ema+qc`` runs of different seeds, comparable with each other, every
completed one without collapse, in a comparison that covers all three methods. Only W4A16 counts:
other precisions and float controls are other experiments. A completed run that kept nothing worth
holding (its best value below 1 % of the FP32 checkpoint's, 0 or not finite), or whose value a check
of the measurement disputes, has not held either. Incomplete runs count neither for nor against the
gate unless asked to; then each one closes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qatval.analysis.comparability import conditions, differences, groups
from qatval.analysis.runs import LoadedRun
from qatval.core import presets
from qatval.quant.methods import method_names

GATE = "yolo10m_allowed"
REQUIRED_VARIANTS = presets.variant("yolo10m").requires
METHOD = "ema+qc"
MODE = "w4a16"
REQUIRED_SEEDS = 2


@dataclass(frozen=True)
class Unmet:
    """A criterion that keeps the gate closed.

    Attributes:
        variant: The variant it is about.
        reason: One line that names the run.
        runs: Ids of the runs it is about; empty where the reason is that there are none.
    """

    variant: str
    reason: str
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return variant and reason on one line."""
        return f"{self.variant}: {self.reason}"


@dataclass(frozen=True)
class GateDecision:
    """Whether the gate is open, and why.

    Attributes:
        unmet: What keeps it closed; empty if and only if it is open.
        evidence: What it was decided on, one line per variant that meets every criterion.
    """

    unmet: tuple[Unmet, ...]
    evidence: tuple[str, ...]

    @property
    def open(self) -> bool:
        """Whether yolo10m may be trained."""
        return not self.unmet

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the gate is open, or each criterion that keeps it closed."""
        return self.evidence if self.open else tuple(str(unmet) for unmet in self.unmet)


def decide(
    runs: Iterable[LoadedRun],
    required: Sequence[str] = REQUIRED_VARIANTS,
    *,
    count_incomplete: bool = False,
) -> GateDecision:
    """Decide whether the variant behind the gate may be trained.

    Args:
        runs: Runs of any variant, method and precision; what the gate does not ask about is
            ignored.
        required: Variants that must have held; yolo10m's where nobody says.
        count_incomplete: Whether an incomplete ``ema+qc`` run closes the gate.
    """
    counted = [run for run in runs if run.mode == MODE and (run.completed or count_incomplete)]
    unmet: list[Unmet] = []
    evidence: list[str] = []
    for name in required:
        of_variant = [run for run in counted if run.variant == name]
        missing, what_holds = _judge(name, of_variant)
        unmet += missing
        evidence += what_holds
    return GateDecision(tuple(unmet), tuple(evidence))


def _judge(variant: str, runs: Sequence[LoadedRun]) -> tuple[list[Unmet], list[str]]:
    tested = [run for run in runs if run.method == METHOD]
    unmet = [
        Unmet(variant, f"{METHOD} run {run.run_id} {_failure(run)}", (run.run_id,))
        for run in tested
        if run.outcome != "stable"
    ]
    if len({run.seed for run in tested}) < REQUIRED_SEEDS:
        return [*unmet, _too_few(variant, tested)], []

    repeated = [group for _, group in groups(runs) if len(_seeds(group)) >= REQUIRED_SEEDS]
    if not repeated:
        return [*unmet, _not_comparable(variant, tested)], []

    compared = max(repeated, key=lambda group: len({run.method for run in group if run.completed}))
    covered = {run.method for run in compared if run.completed}
    if lacking := [name for name in method_names() if name not in covered]:
        ids = tuple(run.run_id for run in compared if run.method == METHOD)
        reason = (
            f"no comparison covers all three methods: no completed {' and no '.join(lacking)} run "
            f"comparable with {', '.join(ids)}"
        )
        unmet.append(Unmet(variant, reason, ids))
    if unmet:
        return unmet, []
    seeds = ", ".join(str(seed) for seed in sorted(_seeds(compared)))
    where = "/".join(filter(None, (compared[0].dataset, compared[0].profile)))
    return [], [
        f"{variant}: {len(tested)} {METHOD} runs without collapse, compared with the other methods "
        f"on seeds {seeds}{f' ({where})' if where else ''}"
    ]


def _seeds(runs: Iterable[LoadedRun]) -> set[int]:
    return {run.seed for run in runs if run.method == METHOD}


def _failure(run: LoadedRun) -> str:
    if run.outcome == "collapsed":
        return f"collapsed (final {_shown(run.final)} of best {_shown(run.best)})"
    if run.outcome == "degenerate":
        return f"kept nothing of the FP32 checkpoint (best value {_shown(run.best)})"
    if run.outcome == "disputed":
        names = ", ".join(check["name"] for check in run.summary["failed_checks"])
        return f"failed a check of its measurement ({names})"
    return "is incomplete"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _too_few(variant: str, tested: Sequence[LoadedRun]) -> Unmet:
    ids = tuple(run.run_id for run in tested)
    seeds = ", ".join(f"{run.run_id} of seed {run.seed}" for run in tested)
    has = f"has only {seeds}" if tested else "has none"
    return Unmet(
        variant, f"needs {REQUIRED_SEEDS} completed {METHOD} runs of different seeds, {has}", ids
    )


def _not_comparable(variant: str, tested: Sequence[LoadedRun]) -> Unmet:
    one = tested[0]
    other = next(run for run in tested if run.seed != one.seed)
    differing = differences(conditions(one.summary), conditions(other.summary))
    return Unmet(
        variant,
        f"{METHOD} runs {one.run_id} and {other.run_id} are not comparable: they differ in "
        + ", ".join(str(difference) for difference in differing[:3])
        + (f" and {len(differing) - 3} more" if len(differing) > 3 else ""),
        (one.run_id, other.run_id),
    )
