"""What training gains over post-training quantization, and what it costs."""

import pytest

from qatval.analysis.family import judge
from qatval.analysis.posttraining import against_post_training as found_against
from qatval.testing import build_summary, loaded


def run(method, seed, final, minutes=1.0):
    timings = {"training": 60.0 * minutes, "final evaluation": 600.0, "total": 999.0}
    if "ptq" in method:  # the builder has 43 s of training
        timings = {
            "training": 0.0,
            "rounding": 60.0 * minutes,
            "second protocol": 600.0,
            "total": 999.0,
        }
    return loaded(build_summary(method, seed, (final, final), changes={"timings": timings}))


def against_post_training(runs, mode):
    """Return what is said of runs that are compared alone."""
    finding = found_against(runs, mode)
    return finding and finding.say(judge([finding]).get(finding))


def runs_of(seeds, **finals):
    """Return a run per method and seed, ``ptq_gptq`` standing for ``ptq+gptq``."""
    return [
        run(name.replace("_", "+"), seed, final + 0.001 * seed)
        for name, final in finals.items()
        for seed in range(seeds)
    ]


def test_the_best_of_each_side_are_compared():
    runs = runs_of(3, baseline=0.60, ema=0.62, ptq=0.10, ptq_gptq=0.58, ptq_shift=0.55)
    found = against_post_training(runs, "w4a16")
    assert (found.method, found.reference) == ("ema", "ptq+gptq")
    assert (found.methods, found.references) == (2, 3)
    assert found.mean == pytest.approx(0.04)
    assert found.sentence.startswith(
        "Training or not, at w4a16: ema (the best of 2 methods) against ptq+gptq (the best of 3 "
        "post-training arms): +0.040 ["
    )
    assert found.sentence.endswith("; it took 1.0 minutes a seed to make, that 1.0")


def test_a_loss_is_said_as_one():
    found = against_post_training(runs_of(3, ema=0.50, ptq_gptq=0.58), "w4a16")
    assert "ema (the only method)" in found.sentence
    assert "-0.080" in found.sentence


def test_few_seeds_cannot_tell():
    found = against_post_training(runs_of(1, ema=0.62, ptq_gptq=0.58), "w4a16")
    assert found.interval is None
    assert "+0.040 on 1 seed, which cannot tell; one seed shows no spread" in found.sentence


def test_a_choice_by_the_result_is_corrected_for_what_it_was_chosen_from():
    runs = runs_of(3, baseline=0.60, ema=0.62, ptq=0.10, ptq_gptq=0.58, ptq_shift=0.55)
    found = against_post_training(runs, "w4a16")
    assert found.corrected.choices == 6
    assert found.corrected.p_value == pytest.approx(min(1, 6 * found.p_value))
    assert "corrected over 1 and 6 choices" in found.sentence


def test_a_run_that_diverged_is_not_dropped_from_the_choice():
    lost = {"metrics": {"final_value": None}, "timings": None}
    diverged = [loaded(build_summary("ema", s, (0.7, 0.7), changes=lost)) for s in (1, 2)]
    found = against_post_training(
        [run("ema", 0, 0.7), *diverged, *runs_of(3, baseline=0.6, ptq=0.5)], "w4a16"
    )
    assert found.method == "baseline"


def test_scores_are_no_cost_of_the_model():
    found = against_post_training(
        [run("ema", 0, 0.6, minutes=5.0), run("ptq+gptq", 0, 0.6, minutes=2.0)], "w4a16"
    )
    assert (found.minutes, found.reference_minutes) == (5.0, 2.0)


@pytest.mark.parametrize(
    "finals",
    [{"ema": 0.6}, {"ptq": 0.6}, {"fp32": 0.6, "ptq": 0.5}, {"ema_bn": 0.6, "ptq": 0.5}, {}],
    ids=str,
)
def test_without_both_sides_there_is_nothing_to_say(finals):
    assert against_post_training(runs_of(2, **finals), "w4a16") is None
