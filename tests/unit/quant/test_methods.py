"""Names of methods: what they are made of, what they stand for, and who may add to them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.cli import run
from qatval.core.errors import QatvalError, UsageError
from qatval.core.method_record import AddedPart
from qatval.quant import methods
from qatval.quant.methods import Method, describe, method, part_names, with_controls
from qatval.quant.methods.batchnorm import OtherStatistics, Reestimated
from qatval.quant.methods.correction import Correction
from qatval.quant.methods.part import Part, Training
from qatval.quant.methods.rounding import Rounding

TRAININGS = ("", "ptq", "fp32", "dampen", "freeze", "dampen+freeze")
AFTER = ("", "bn", "qc")


def the(kind: type[Part], found: Method) -> Part | None:
    """Return a method's part of a kind."""
    return next((part for part in found.parts if isinstance(part, kind)), None)


def joined(*names: str) -> str:
    return "+".join(filter(None, names)) or "baseline"


@pytest.mark.parametrize("names", list(product(TRAININGS, ("", "ema"), AFTER)), ids="-".join)
def test_every_combination_means_what_it_says_or_is_refused(names: tuple[str, str, str]) -> None:
    training, average, after = names
    name = joined(*names)
    if training == "ptq" and average:
        with pytest.raises(UsageError, match=f"method '{name.replace('+', chr(92) + '+')}'"):
            method(name)
        return
    found = method(name)
    assert found.name == name
    assert found.weights == ("ema" if average else "raw")
    assert (the(Reestimated, found) is not None) is (after == "bn")
    assert (the(Correction, found) is not None) is (after == "qc")
    assert found.quantized is (training != "fp32")
    assert found.is_control is (training in ("ptq", "fp32") or after == "bn")
    if training == "ptq":
        assert found.training is None
    else:
        assert found.training is not None
        kinds = [s.implementation.rpartition(":")[2] for s in found.training.stabilizers]
        wanted = {"dampen": "Dampening", "freeze": "Freezing"}
        assert kinds == [wanted[part] for part in training.split("+") if part in wanted]


@pytest.mark.parametrize("name", ["ptq+gptq", "ptq+shift", "ptq+gptq+bn", "ptq+gptq+shift"])
def test_post_training_arms_train_nothing(name: str) -> None:
    found = method(name)
    assert found.training is None
    assert found.quantized
    assert (the(Rounding, found) is not None) is ("gptq" in name)
    wanted = {"bn": "reestimated", "shift": "shifted"}.get(name.rpartition("+")[2])
    statistics = the(OtherStatistics, found)
    assert (statistics and statistics.kind) == wanted


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gptq", "only a checkpoint that nothing trains"),
        ("fp32+shift", "an FP32 training has none"),
        ("ptq+bn+shift", "statistics cannot become two things"),
        ("ptq+shift+qc", "QC keeps the BatchNorm statistics fixed"),
    ],
)
def test_what_cannot_be_combined_is_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        method(name)


@given(st.permutations(part_names()).flatmap(lambda p: st.integers(1, 4).map(lambda n: p[:n])))
def test_one_method_has_one_name(found: list[str]) -> None:
    ordered = [part for part in part_names() if part in found]
    if found == ordered:
        with contextlib.suppress(UsageError):  # some cannot be combined
            assert [part.name for part in method("+".join(found)).parts] == found
    else:
        with pytest.raises(UsageError, match="is called"):
            method("+".join(found))


def test_the_papers_settings() -> None:
    qc, ema = the(Correction, method("ema+qc")), method("ema").averaging
    assert isinstance(qc, Correction)
    assert (qc.epochs, qc.lr) == (1, 1e-4)
    assert ema is not None
    assert ema.for_steps(1_000_000) == (0.9999, 2000.0)
    assert method("ema+qc").averaging == ema


def test_averaging_and_what_comes_after_share_a_training() -> None:
    names = ("baseline", "ema", "qc", "ema+qc", "ema+bn", "bn")
    assert [method(name).training for name in names] == [Training()] * 6
    in_float = Training(quantized=False)
    assert method("fp32").training == method("fp32+ema").training == in_float
    dampened = method("dampen").training
    assert dampened == method("dampen+ema+qc").training != method("freeze").training


def test_controls_follow_from_what_is_tested() -> None:
    assert with_controls(("baseline", "ema", "ema+qc")) == (
        "baseline",
        "ema",
        "ema+qc",
        "ptq",
        "ptq+shift",
        "ptq+gptq+shift",
        "fp32",
        "fp32+ema",
        "fp32+ema+qc",
        "ema+bn",
    )
    assert with_controls(["dampen+ema+qc"])[1:] == (
        "ptq",
        "ptq+shift",
        "ptq+gptq+shift",
        "fp32",
        "fp32+ema",
        "fp32+ema+qc",
        "dampen+ema+bn",
    )
    assert with_controls(["qc", "bn"]) == (
        "qc",
        "bn",
        "ptq",
        "ptq+shift",
        "ptq+gptq+shift",
        "fp32",
        "fp32+qc",
    )
    assert with_controls(["ema", "ema"])[:2] == ("ema", "ema")  # for the run to refuse


OUTSIDE = """
[part.still.stabilizer]
implementation = "outside:Still"
[part.still.stabilizer.settings]
share = 0.5
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that adds a part, as pip would leave it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").touch()
    (tmp_path / "outside" / "methods.toml").write_text(OUTSIDE)
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qatval.methods]\noutside = outside\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for cached in (methods._presets, methods._catalogue):
        cached.cache_clear()
    yield tmp_path
    for cached in (methods._presets, methods._catalogue):
        cached.cache_clear()
    sys.modules.pop("outside", None)


def test_an_installed_package_adds_a_part(package: Path) -> None:
    training = method("still+ema").training
    assert training is not None
    assert [(s.implementation, dict(s.settings)) for s in training.stabilizers] == [
        ("outside:Still", {"share": 0.5})
    ]
    assert part_names().index("still") < part_names().index("ema")
    done = msgspec.structs.replace(
        method("baseline").announced(), post_training=(AddedPart("outside:Done", {}, {"n": 2.0}),)
    )
    assert "Done: no settings; at the end n 2" in list(describe(done))


def named_and_not_in_the_way(says: str) -> None:
    """A package is named where its methods are listed or asked for, and all others are there."""
    assert {"ema", "qc", "dampen"} <= set(part_names())
    assert method("ema+qc").parts
    (line,) = methods.packages_left_out()
    with pytest.raises(UsageError) as caught:
        method("still")
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    helped = io.StringIO()
    with contextlib.redirect_stdout(helped), pytest.raises(SystemExit, match="0"):
        parser.parse_args(["run", "--help"])
    listed = " ".join(helped.getvalue().split())
    for text in (line, str(caught.value), listed):
        assert re.search(f"package 'outside'.* adds no methods .*{says}", text), text
        assert text.isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "KeyError"),
        ("[part", "TOMLDecodeError"),
        ("part = 3", "TypeError"),
        ("[part.odd]\nname = 1", "its part 'odd' must be one of"),
        ("[part.odd.untrained]\nname = 1", "TypeError"),
        ("[part.odd.stabilizer]\n", "TypeError"),
        ("a = " + "[" * 9999, "RecursionError|TOMLDecodeError"),
    ],
)
def test_a_broken_file_is_one_line(content: str, says: str, package: Path) -> None:
    (package / "outside" / "methods.toml").write_text(content)
    named_and_not_in_the_way(says)


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('100 %\\x1b[2J\\n' * 99)",
        "import does_not_exist",
        "raise SystemExit(3)",
        "def",
        "import outside.more",
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line(code: str, package: Path) -> None:
    (package / "outside" / "__init__.py").write_text(code)
    named_and_not_in_the_way("Error|SystemExit")


def test_a_package_without_a_file_or_that_is_gone(package: Path) -> None:
    (package / "outside" / "methods.toml").unlink()
    named_and_not_in_the_way("FileNotFoundError")


@pytest.mark.parametrize("name", ["ema", "baseline", '"a+b"'])
def test_a_package_cannot_take_a_name(name: str, package: Path) -> None:
    (package / "outside" / "methods.toml").write_text(f"[part.{name}.untrained]\n")
    named_and_not_in_the_way("it cannot name a part")


def test_a_plan_names_no_class_that_is_not_installed(package: Path, tmp_path: Path) -> None:
    from qatval.train.trajectory import TrainingPlan, read_plan, write

    averaging = method("ema").averaging
    assert averaging is not None
    for name in ("still", "dampen"):
        training = method(name).training
        assert training is not None
        stabilizers = training.stabilizers
        plan = TrainingPlan("s", "yolov10n.yaml", None, None, averaging, ("raw",), 1)
        write(tmp_path, dataclasses.replace(plan, stabilizers=stabilizers))
        assert read_plan(tmp_path).stabilizers[0].implementation == stabilizers[0].implementation
    for foreign in ("os:system", "outside:Other", "qatval.quant.dampening:math"):
        other = dataclasses.replace(stabilizers[0], implementation=foreign)
        write(tmp_path, dataclasses.replace(plan, stabilizers=(other,)))
        with pytest.raises(QatvalError, match=f"of an installed package, got '{foreign}'"):
            read_plan(tmp_path)
