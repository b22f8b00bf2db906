"""Which runs are subtracted from each other, and from what their uncertainty comes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatval.analysis.measuring import measure
from qatval.analysis.pairing import Contrast, evaluate, net_of, pair_by_seed, scores_of
from qatval.testing import build_summary, loaded

finals = st.floats(0.3, 0.9).map(lambda value: round(value, 6))


def run(method="ema", seed=0, final=0.6, **more):
    return loaded(build_summary(method, seed, (0.5, 0.58, final), **more))


def of(method, trajectory, final):
    changes = {"run_id": f"{method} {trajectory}", "training": {"trajectory": trajectory}}
    return run(method, 0, final, changes=changes)


def paired(runs, method="ema", reference="baseline"):
    contrasts = pair_by_seed(runs, method, reference)
    return contrasts and measure(runs, contrasts, scores_of(runs), (method, reference), None).pairs


def test_runs_of_one_training_are_paired_with_each_other():
    runs = [of("baseline", "a", 0.60), of("baseline", "b", 0.70), of("ema", "a", 0.61)]
    (pair,) = paired(runs)
    assert pair.shared_training
    assert pair.difference == pytest.approx(0.01)


def test_without_a_shared_training_runs_are_paired_by_seed():
    runs = [of("baseline", None, 0.60), of("ema", None, 0.61), run("ema", 1)]
    (pair,) = paired(runs)
    assert pair.seed == 0
    assert not pair.shared_training


def test_a_seed_counts_once_however_many_runs_it_has():
    runs = [of("baseline", None, 0.60), of("ema", "a", 0.62), of("ema", "b", 0.64)]
    (pair,) = paired(runs)
    assert pair.difference == pytest.approx(0.03)


def test_image_resamples_are_used_when_they_are_the_same_resamples():
    assert paired([run("baseline"), run("ema")])[0].image_error is not None
    other = run("ema", changes={"metrics": {"bootstrap": {"seed": 1}}})
    assert paired([run("baseline"), other])[0].image_error is None
    assert paired([run("baseline"), run("ema", resamples=0)])[0].image_error is None
    assert paired([run("baseline", resamples=0), run("ema", resamples=0)])[0].image_error is None


def test_without_an_identity_nobody_knows_what_was_resampled():
    unknown = {"dataset": {"identity": None}}
    runs = [run("baseline", changes=unknown), run("ema", changes=unknown)]
    assert paired(runs)[0].image_error is None


def test_the_error_over_images_is_that_of_the_difference():
    def resampled(*values):
        return {"metrics": {"bootstrap": {"values": values}}}

    moved_together = [
        run("baseline", changes=resampled(0.60, 0.64, 0.56)),
        run("ema", changes=resampled(0.61, 0.65, 0.57)),
    ]
    assert paired(moved_together)[0].image_error == pytest.approx(0.0, abs=1e-12)


def test_incomplete_runs_are_not_paired():
    assert not paired([run("baseline"), run("ema", error="interrupted")])


def test_a_seed_on_which_a_run_collapsed_is_not_paired():
    runs = [of("baseline", "a", 0.60), of("ema", "a", 0.61), run("baseline", 1), run("ema", 1)]
    assert [pair.seed for pair in paired(runs)] == [0, 1]
    assert [pair.seed for pair in paired([*runs, of("ema", "b", 0.1)])] == [1]


@given(st.lists(st.tuples(finals, finals), min_size=1, max_size=6))
def test_two_runs_add_as_exactly_as_any_number(columns):
    values = np.array(list(zip(*columns, strict=True)))
    contrast = Contrast(np.array([1.0, -1.0]), shared_training=True)
    (found,) = evaluate([contrast], values)
    exact = [math.fsum((one, -other)) for one, other in columns]
    assert found[1:].tolist() == exact[1:]


@given(finals, finals, finals)
def test_the_reference_that_gain_and_control_share_cancels(corrected, fresh, before):
    runs = [run("ema+qc", 0, corrected), run("ema+bn", 0, fresh), run("ema", 0, before)]
    net = net_of(pair_by_seed(runs, "ema+qc", "ema"), pair_by_seed(runs, "ema+bn", "ema"))
    assert net[0].weights.tolist() == [1, -1, 0]
    ((value, *resampled),) = evaluate(net.values(), scores_of(runs).values)
    assert value == pytest.approx(corrected - fresh, abs=1e-9)
    assert np.isfinite(resampled).all()


measured = st.floats(0.3, 1).map(lambda value: round(value, 6))
rows = st.lists(st.tuples(measured, measured, measured, measured), min_size=1, max_size=6)


@given(rows)
def test_a_net_contrast_is_the_plain_signed_sum_in_value_and_on_every_resample(columns):
    names = ("ema", "baseline", "fp32+ema", "fp32")
    runs = [
        run(name, 0, values[0], changes={"metrics": {"bootstrap": {"values": values}}})
        for name, values in zip(names, zip(*columns, strict=True), strict=True)
    ]
    net = net_of(pair_by_seed(runs, *names[:2]), pair_by_seed(runs, *names[2:]))
    (found,) = evaluate(net.values(), scores_of(runs).values)
    plain = [(m - r) - (c - cr) for m, r, c, cr in columns]
    resampled = plain if len(columns) > 1 else []
    assert found == pytest.approx([plain[0], *resampled], abs=1e-11)


def test_equal_gains_are_a_net_contrast_of_nothing():
    runs = [run("ema", 0, 0.6), run("baseline", 0, 0.4), run("fp32+ema", 0, 0.9)]
    runs.append(run("fp32", 0, 0.9 - (0.6 - 0.4)))
    net = net_of(pair_by_seed(runs, "ema", "baseline"), pair_by_seed(runs, "fp32+ema", "fp32"))
    assert evaluate(net.values(), scores_of(runs).values)[0, 0] == 0.0
