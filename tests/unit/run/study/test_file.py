"""Study files: what they say, and that what is wrong with one is told in a line with its key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatval.core.errors import QatvalError, UsageError
from qatval.core.training_arguments import EXPECTED, refuse_unfit
from qatval.quant.methods import with_controls
from qatval.run.study.file import load_study
from qatval.run.study.matrix import Study
from qatval.run.study.planning import planned

PAGE = Path(__file__).parents[4] / "docs" / "studies.md"
LEAST = """
variants = ["yolo10n"]
methods = ["baseline", "ema"]
primary = "ema:baseline"
seeds = "0..2"
dataset = "embedded"
profile = "smoke"
"""

Load = Callable[[str], Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str) -> Study:
        file = tmp_path / "study.toml"
        file.write_text(text)
        return load_study(file)

    return loaded


def test_the_least_that_a_file_says(load: Load) -> None:
    study = load(LEAST)
    assert study.seeds == (0, 1, 2)
    assert study.primary == ("ema", "baseline")
    assert list(study.quantizations) == ["w4a16"]
    assert list(study.schedules()) == ["smoke"]
    assert study.resources == {}


def test_the_example_of_the_page(load: Load, tmp_path: Path) -> None:
    page = PAGE.read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    study = load(example)
    jobs = planned(study, tmp_path / "out").jobs
    assert f"{len(jobs)} jobs of {sum(len(job.methods) for job in jobs)} runs" in page
    assert f"{len({job.name.rpartition('/')[0] for job in jobs})} pairs of a setting" in page
    assert study.methods == with_controls(["baseline", "ema", "ema+qc"])
    assert list(study.quantizations) == ["w4-per-tensor", "w3-per-channel"]
    assert study.trainings["constant"].overrides == {"lrf": 1.0}
    assert study.trainings["constant"].seeds == (0, 1, 2)
    assert study.resources == {"threads": 1}


def test_the_page_names_every_key(load: Load) -> None:
    page = PAGE.read_text("utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    for key in ("variants", "resources", "trainings.a", "quantizations.a"):
        table = f"[{key}]\nnonsense = 1" if "." in key or key == "resources" else "nonsense = 1"
        with pytest.raises(QatvalError, match="expected one of ") as error:
            load(f"{LEAST}\n{table}")
        keys = str(error.value).split("expected one of ")[1].split(", ")
        assert set(keys) - {"trainings", "quantizations", "resources", "slurm", "ray"} <= named


def test_paths_are_relative_to_the_file(load: Load, tmp_path: Path) -> None:
    text = LEAST.replace('"embedded"', '"coco"')
    study = load(f'{text}\ngate_root = "/runs"\n[trainings.a]\ncheckpoint = "a.pt"')
    assert study.dataset == str(tmp_path / "coco")
    assert study.gate_root == "/runs"
    assert study.trainings["a"].checkpoint == str(tmp_path / "a.pt")


def test_activations_of_16_bits_are_float(load: Load) -> None:
    study = load(f"{LEAST}[quantizations.a]\nquantization = 'paper'\nactivation_bits = 16")
    assert study.quantizations["a"].arguments() == {
        "quantization": "paper",
        "precision": {"activation_bit_width": None},
    }


def test_the_start_is_a_part_of_the_precision(load: Load) -> None:
    study = load(f"{LEAST}[quantizations.a]\nweight_bits = 3\nstart_scale = 'mse'")
    assert study.quantizations["a"].arguments()["precision"] == {
        "weight_bit_width": 3,
        "start": {"scale": "mse"},
    }


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("metods = []", "metods: no such key, is it 'methods'?"),
        ("source = 'x'", "source: no such key"),
        ("with_control = true", "with_control: no such key, is it 'with_controls'?"),
        ("with_controls = 1", "with_controls: expected true or false, got 1"),
        ("margin = 2", "margin: expected float < 1.0, got 2"),
        ("margin = 'x'", "margin: expected float, got str"),
        ("gate_root = 3", "gate_root: expected a path, got 3"),
        ("trainings = 1", "trainings: expected tables [trainings.NAME], got 1"),
        ("[trainings]\na = 1", "trainings.a: expected a table, got 1"),
        ("[trainings.a]\nepochs = 0", "trainings.a.epochs: expected int >= 1, got 0"),
        ("[trainings.a]\nimage_list = 'no.txt'", "a.image_list: expected a file of image names"),
        ("[trainings.a]\ndevice = '0'", "trainings.a.device: expected cpu, as resources.gpus is 0"),
        (
            "[trainings.a]\ndevice = 'cpu'\n[resources]\ngpus = 1",
            "trainings.a.device: expected a GPU, as resources.gpus is 1.0, got cpu",
        ),
        ("[trainings.a]\nepoch = 1", "trainings.a.epoch: no such key, is it 'epochs'?"),
        ("[trainings.a]\nmethods = ['emma']", "trainings.a.methods: emma is none of the study's"),
        ("[trainings.a]\nmethods = []", "trainings.a.methods: expected at least one"),
        ("[trainings.a]\nseeds = '7'", "trainings.a.seeds: 7 is none of the study's"),
        ("[trainings.a]\nbatchnorm = 'x'", "batchnorm: expected one of running, anchored, got 'x'"),
        ("[trainings.a]\noverrides = {lfr = 1.0}", "trainings.a.overrides.lfr: no training"),
        ("[trainings.a]\noverrides = {epochs = 1}", "overrides.epochs: no training argument"),
        ("[trainings.a]\noverrides = {lrf = 2}", "lrf: expected a number in 0..1, got 2"),
        ("[quantizations.W4]", "quantizations: 'W4' names a folder"),
        ("[quantizations.'..']", "quantizations: '..' names a folder"),
        ("[trainings.'a/b']", "trainings: 'a/b' names a folder"),
        ("[quantizations.a]\nweight_bits = 9", "a.weight_bits: expected int <= 8, got 9"),
        ("[quantizations.a]\nactivation_bits = 9", "a.activation_bits: expected an integer in"),
        ("[quantizations.a]\nscale = 'x'", "a.scale: expected one of per-tensor, per-channel"),
        ("quantizations = {}", "quantizations: expected at least one"),
        ("[resources]\nthread = 1", "resources.thread: no such key, is it 'threads'?"),
        ("[resources]\nthreads = 0", "resources.threads: expected at least 1, got 0"),
        ("[resources]\ngpus = 1.5", "resources.gpus: expected a share of one or whole ones"),
        ("[ray]\nadress = 'x'", "ray.adress: no such key; expected address"),
        ("[ray]\naddress = 1", "ray.address: expected str, got 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(more: str, said: str, load: Load) -> None:
    with pytest.raises(QatvalError, match=re.escape(said)) as error:
        load(LEAST + more)
    assert re.match(r"/\S*/study.toml: [^\n]*$", str(error.value))


@pytest.mark.parametrize(
    ("was", "is_now", "said"),
    [
        ('"0..2"', "[0, 0]", "seeds: a seed is given twice: 0,0"),
        ('"0..2"', "[]", "seeds: expected seeds such as"),
        ('"0..2"', "[0.5]", "seeds: expected seeds such as"),
        ('"0..2"', "3", "seeds: expected seeds such as"),
        ('"yolo10n"', '"yolo10x"', "variants: unknown variant 'yolo10x'"),
        ('"yolo10n"', '"yolo10n", "yolo10n"', "variants: yolo10n is given twice"),
        ('"ema"]', '"ema", "ema"]\nwith_controls = true', "methods: ema is given twice"),
        ('"ema"]', '"qc+ema"]', "methods: method 'qc+ema' is called 'ema+qc'"),
        ('"ema"]', '"emma"]\nwith_controls = true', "unknown method 'emma'"),
        ('"ema:baseline"', '"qc:baseline"', "primary: qc is none of the methods"),
        ('"ema:baseline"', '"ema"', "primary: expected METHOD:REFERENCE"),
        ('profile = "smoke"', "", "profile: missing"),
        ('dataset = "embedded"', "", "dataset: missing"),
        ('"smoke"', '"smo', "is no TOML"),
    ],
)
def test_so_is_what_stands_in_the_place_of_what_must(
    was: str, is_now: str, said: str, load: Load
) -> None:
    with pytest.raises(QatvalError, match=re.escape(said)):
        load(LEAST.replace(was, is_now))


def test_a_checkpoint_is_of_one_variant(load: Load) -> None:
    two = LEAST.replace('"yolo10n"', '"yolo10n", "yolo10s"')
    with pytest.raises(QatvalError, match=r"trainings\.a\.checkpoint: is of one variant"):
        load(f"{two}[trainings.a]\ncheckpoint = 'a.pt'")
    load(f"{two}[trainings.a]\ncheckpoint = 'a.pt'\nvariants = ['yolo10s']")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # examples are trees
@given(
    st.dictionaries(
        st.sampled_from(["variants", "methods", "seeds", "trainings", "resources", "x"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_no_document_is_met_with_a_traceback(document: dict[str, object]) -> None:
    from qatval.run.study import file as module

    whole = {"variants": ["yolo10n"], "methods": ["ema"], "seeds": "0", "dataset": "embedded"}
    with contextlib.suppress(UsageError):
        module._study({**whole, "profile": "smoke", **document}, Path("study.toml"))


@pytest.mark.parametrize("name", EXPECTED)
def test_ultralytics_takes_the_training_arguments_that_are_let_through(name: str) -> None:
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert name in DEFAULT_CFG_DICT
    for value in (0, 1, 0.5, 2, 7.5, -1, True, "AdamW", "flip", "x", [], None):
        try:
            refuse_unfit({name: value})
        except UsageError:
            continue
        check_cfg({name: value}, hard=True)
