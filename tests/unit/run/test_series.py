"""A series of seeds: what is kept, what it is held to, where it stops; no training takes part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qatval.cli.main import main
from qatval.core.errors import QatvalError, UsageError
from qatval.core.progress import Progress
from qatval.core.summary import load_summary
from qatval.run import runner
from qatval.run import series as module
from qatval.run.claim import Claim
from qatval.run.configuration import RunConfig, configure
from qatval.run.folder import RunFolder
from qatval.run.record import finished
from qatval.run.series import SeedDone, Series, series
from qatval.run.workspace import Workspace

Make = Callable[..., Series]


class Trainings:
    """Stands for the pipeline: a method's final value by seed.

    Attributes:
        gains: Of ema over the baseline, by seed.
        dies: Seeds whose training is interrupted, once each.
        ran: The seeds that were trained.
    """

    def __init__(self) -> None:
        self.gains = {seed: 0.05 + 0.001 * (seed % 3) for seed in range(20)}
        self.dies: set[int] = set()
        self.ran: list[int] = []
        self.planned: list[bool] = []

    def __call__(
        self,
        config: RunConfig,
        folders: Mapping[str, RunFolder],
        workspace: Workspace,
        progress: Progress,
    ) -> None:
        self.ran.append(config.seed)
        self.planned.append((config.run_root.parent / "series.json").exists())
        directory = workspace.training(0)
        directory.mkdir(exist_ok=True)
        (directory / "trajectory.json").write_text("{}")
        if config.seed in self.dies:
            self.dies.remove(config.seed)
            raise KeyboardInterrupt
        for name, folder in folders.items():
            file = folder.dataset / "dataset.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
            value = 0.5 + (self.gains[config.seed] if name == "ema" else 0.0)
            counted = replace(folder.summary.dataset, train_images=8, val_images=8)
            folder.finish(finished(replace(folder.summary, dataset=counted), [0.4, value], []))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stand_in = Trainings()
    monkeypatch.setattr(runner, "_pipeline", lambda: stand_in)
    monkeypatch.setattr(runner, "_steps", lambda *_: 34)  # without torch
    monkeypatch.setattr(module, "Progress", lambda title: Progress(title, quiet=True))
    return stand_in


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "coco").mkdir()
    (tmp_path / "m.safetensors").write_text("weights")

    def made(
        seeds: tuple[int, ...] = tuple(range(6)),
        *,
        until_told: bool = True,
        margin: float | None = None,
        **options: Any,
    ) -> Series:
        config = configure(
            **{
                "variant": "yolo10n",
                "methods": ("baseline", "ema"),
                "primary": ("ema", "baseline"),
                "profile": "smoke",
                "run_root": tmp_path / "run",
                "coco_root": tmp_path / "coco",
                "checkpoint": tmp_path / "m.safetensors",
                **options,
            }
        )
        return series(config, seeds, until_told=until_told, margin=margin)

    return made


def run(asked: Series) -> list[SeedDone]:
    return list(module.run(asked))


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_it_stops_at_the_look_that_tells(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    done = run(make((4, 3, 2, 1, 0, 9)))
    told = [one.standing.told if one.standing else None for one in done]
    assert told[:-1] == [None] * (len(done) - 1)
    assert told[-1] == "ema is told apart from baseline"
    assert trainings.ran == [4, 3, 2, 1, 0, 9][: len(done)]
    assert len(done) < 6
    assert trainings.planned == [True] * len(done)
    for one in done:
        recorded = load_summary(tmp_path / "run" / f"seed{one.seed}" / "ema").series
        assert recorded is not None
        assert recorded.seeds == (4, 3, 2, 1, 0, 9)
    assert list(tmp_path.rglob(".*")) == []


def test_what_is_not_told_goes_on_to_the_last(trainings: Trainings, make: Make) -> None:
    trainings.gains = {0: 0.02, 1: -0.02, 2: 0.01, 3: -0.01}
    done = run(make((0, 1, 2, 3)))
    assert [one.standing is None for one in done] == [True, True, False, False]
    assert [one.number for one in done] == [1, 2, 3, 4]
    assert done[-1].standing is not None
    assert done[-1].standing.told is None


def test_a_margin_stops_it(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    trainings.gains = dict(enumerate((0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0)))
    done = run(make(margin=0.02))
    assert len(done) < 6
    assert done[-1].standing is not None
    assert done[-1].standing.told == "ema is no worse than baseline by 0.02 or more"


def test_without_until_told_all_seeds_are_run(
    trainings: Trainings, make: Make, tmp_path: Path
) -> None:
    done = run(make((0, 1, 2, 3), until_told=False))
    assert trainings.ran == [0, 1, 2, 3]
    assert {one.standing for one in done} == {None}
    assert load_summary(tmp_path / "run" / "seed0" / "ema").series is None


def test_one_method_lies_in_the_folder_of_its_seed(
    trainings: Trainings, make: Make, tmp_path: Path
) -> None:
    run(make((3, 5), until_told=False, methods=("ema",)))
    assert load_summary(tmp_path / "run" / "seed5").training.seed == 5


def test_an_interrupted_series_goes_on(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    trainings.dies = {2}
    with pytest.raises(KeyboardInterrupt, match=r"^seed 2: .* the same command goes on"):
        run(make())
    kept = snapshot(tmp_path / "run" / "seed0") | snapshot(tmp_path / "run" / "seed1")
    plan = (tmp_path / "run" / "series.json").read_bytes()
    done = run(make())
    assert trainings.ran == [0, 1, 2, *range(2, len(done))]
    assert len(load_summary(tmp_path / "run" / "seed2" / "ema").resumed) == 1
    assert snapshot(tmp_path / "run" / "seed0") | snapshot(tmp_path / "run" / "seed1") == kept
    assert (tmp_path / "run" / "series.json").read_bytes() == plan
    ran = list(trainings.ran)
    again = run(make())  # it is told: the same look decides the same, and nothing is trained
    assert again == done
    assert trainings.ran == ran


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seeds": tuple(range(8))}, r"another seeds: it was \[0,1,2,3,4,5\], is"),
        ({"margin": 0.01}, r"another margin: it was null, is 0\.01"),
        ({"until_told": False}, "another until-told: it was true, is false"),
        ({"primary": ("baseline", "ema")}, "another primary"),
        ({"epochs": 9}, r"another profile\.epochs: it was 1, is 9"),
        ({"methods": ("baseline", "ema", "freeze")}, "another method:"),
        ({"methods": ("ema",), "until_told": False}, "another method:"),
    ],
)
def test_what_was_planned_holds(
    changed: dict[str, Any], says: str, trainings: Trainings, make: Make, tmp_path: Path
) -> None:
    trainings.dies = {1}
    with pytest.raises(KeyboardInterrupt):
        run(make())
    before = snapshot(tmp_path / "run")
    for restart in (False, True):
        with pytest.raises(QatvalError, match=rf"{says}.*or another --run-root"):
            run(make(**changed, restart=restart))
    assert snapshot(tmp_path / "run") == before


def test_before_a_seed_is_finished_restart_plans_anew(trainings: Trainings, make: Make) -> None:
    trainings.dies = {0}
    with pytest.raises(KeyboardInterrupt):
        run(make())
    with pytest.raises(QatvalError, match="--restart to begin anew"):
        run(make((0, 1, 2, 3)))
    assert len(run(make((0, 1, 2, 3), restart=True))) <= 4


def test_a_plan_that_nothing_was_trained_for_is_replaced(
    trainings: Trainings, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(QatvalError, match=r"checkpoint .* not found"):
        run(make(checkpoint=tmp_path / "none.pt"))
    run(make((0, 1, 2, 3)))
    assert json.loads((tmp_path / "run" / "series.json").read_text())["seeds"] == [0, 1, 2, 3]


def test_runs_that_are_none_of_it_are_refused(
    trainings: Trainings, make: Make, tmp_path: Path
) -> None:
    run(make((0, 2), until_told=False, run_root=tmp_path / "other"))
    root = tmp_path / "run"
    root.mkdir()
    (tmp_path / "other" / "seed0").rename(root / "seed0")
    with pytest.raises(QatvalError, match=r"seed0/baseline holds a finished run that is none of"):
        run(make())
    (root / "seed0").rename(tmp_path / "seed0")
    trainings.dies = {1}
    with pytest.raises(KeyboardInterrupt):
        run(make())
    (tmp_path / "other" / "seed2").rename(root / "seed2")
    with pytest.raises(QatvalError, match=r"seed2/baseline holds a run that is none of this"):
        run(make())


def test_killed_after_the_last_method_of_a_seed(
    trainings: Trainings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "remove", lambda self: None)
        done = run(make((0, 1, 2), until_told=False))
    assert (tmp_path / "run" / "seed2" / ".training").exists()
    assert run(make((0, 1, 2), until_told=False)) == done
    assert list(tmp_path.rglob(".*")) == []


def test_a_run_of_another_seed_is_refused(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run(make((0, 1), until_told=False))
    (root / "seed0").rename(tmp_path / "seed0")
    (root / "seed1").rename(root / "seed0")
    with pytest.raises(QatvalError, match=r"seed0/baseline holds a run that is none of this"):
        run(make((0, 1), until_told=False))


def test_a_second_process_is_kept_out(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    with Claim() as claim:
        claim.add(tmp_path / "run")
        with pytest.raises(QatvalError, match="is in use"):
            run(make())
    assert trainings.ran == []


def test_a_record_that_is_none_is_refused(trainings: Trainings, make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "series.json").write_text('{"seeds": 3}')
    with pytest.raises(QatvalError, match=r"series\.json is no record of a series"):
        run(make())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"overwrite": True}, "--overwrite replaces single runs"),
        ({"margin": 0.01, "until_told": False}, "add --until-told"),
        ({"methods": ("ema", "freeze")}, "add baseline to --method"),
        ({"seeds": (0, 1)}, "takes 3 to 50 seeds, got 2"),
    ],
)
def test_what_no_series_can_be(options: dict[str, Any], says: str, make: Make) -> None:
    with pytest.raises(UsageError, match=says):
        make(**options)


def command(tmp_path: Path, *more: str) -> list[str]:
    options = {
        "--variant": "yolo10n",
        "--method": "baseline,ema",
        "--primary": "ema:baseline",
        "--profile": "smoke",
        "--run-root": tmp_path / "run",
        "--coco-root": tmp_path / "coco",
        "--checkpoint": tmp_path / "m.safetensors",
        "--seeds": "0..3",
    }
    return ["run", *(str(part) for pair in options.items() for part in pair), *more]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command prints of the series, without the lines of the runs."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith(("baseline:", "ema:"))]


def test_the_command_says_why_it_stops(
    trainings: Trainings, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "--until-told")) == 0
    *seeds, look, stopped, sentence = printed(capsys)
    assert seeds == ["seed 0 (1 of 4):", "seed 1 (2 of 4):", "seed 2 (3 of 4):"]
    assert look == (
        "look 1 of 2 (level 0.019): corrected p < 0.001, ema is told apart from baseline"
    )
    assert stopped == "stopped after 3 of 4 seeds: ema is told apart from baseline"
    assert sentence.startswith("ema is better than baseline on 3 of 3 seeds, +0.051")
    assert "primary, corrected for look 1 of 2 (level 0.019)" in sentence


def test_the_command_says_that_nothing_is_told(
    trainings: Trainings, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.gains = {0: 0.02, 1: -0.02, 2: 0.01, 3: -0.01}
    assert main(command(tmp_path, "--until-told", "--margin", "0.001")) == 0
    *_, look, stopped, sentence = printed(capsys)
    assert look == "look 2 of 2 (level 0.038): corrected p 1, not told"
    assert stopped == (
        "stopped after 4 of 4 seeds, all that were planned: ema is not told from baseline, which "
        "stays open"
    )
    assert "whether alike within 0.001 is open" in sentence


def test_the_command_without_until_told_says_nothing_of_looks(
    trainings: Trainings, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path)) == 0
    assert printed(capsys) == [f"seed {seed} ({seed + 1} of 4):" for seed in range(4)]
