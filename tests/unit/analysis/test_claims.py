"""What comparisons claim: corrected, beside what they could have found, never over collapses."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from qatval.analysis import words
from qatval.analysis.claims import Power
from qatval.analysis.comparability import groups
from qatval.analysis.comparison import compare, findings
from qatval.analysis.document import Primary
from qatval.analysis.effects import paired_differences
from qatval.analysis.family import judge
from qatval.core.schema import published
from qatval.testing import build_summary, loaded

EIGHT = ("baseline", "ema", "ema+qc", "dampen", "freeze", "qc", "fp32", "fp32+ema")


def run(method, seed, final=0.6, **more):
    return loaded(build_summary(method, seed, (0.5, 0.58, final), **more))


def runs_of(seeds=5, noise=0.002, resamples=0, primary=None, mode="w4a16", **finals):
    """Return a run per method and seed about a mean, ``ema_qc`` standing for ``ema+qc``."""
    draw = np.random.default_rng(3)
    declared = {} if primary is None else {"method": primary[0], "reference": primary[1]}
    return [
        run(
            name.replace("_", "+"),
            seed,
            final + float(draw.normal(0, noise)),
            resamples=resamples,
            mode=mode,
            changes={"primary": declared, "run_id": f"{mode} {name} {seed}"}
            if declared
            else {"run_id": f"{mode} {name} {seed}"},
        )
        for name, final in finals.items()
        for seed in range(seeds)
    ]


def contrasts(comparison):
    for group in comparison.groups:
        yield from group.differences
        yield from group.net_effects
        if group.against_post_training is not None:
            yield group.against_post_training


def of(comparison, method, reference, group=0):
    (found,) = [
        d
        for d in comparison.groups[group].differences
        if (d.method, d.reference) == (method, reference)
    ]
    return found


@pytest.mark.parametrize("seeds", [3, 10])
def test_eight_equal_methods_are_told_apart_in_one_comparison_of_twenty(seeds):
    """Uncorrected it is a quarter and more of all comparisons."""
    draw, trials, uncorrected, claiming = np.random.default_rng(5), 150, 0, 0
    for _ in range(trials):
        runs = [
            run(method, seed, 0.6 + float(draw.normal(0, 0.01)), resamples=0)
            for method in EIGHT
            for seed in range(seeds)
        ]
        found = list(findings(groups(runs)[0]).all())
        uncorrected += any(one.test.p_values[0] <= 0.05 for one in found)
        claiming += any(verdict.tells for verdict in judge(found).values())
    assert uncorrected / trials > 0.15
    assert claiming / trials <= 0.05 + 3 * 0.018


IMAGES = 128
WEIGHTS = np.random.default_rng(0).multinomial(IMAGES, [1 / IMAGES] * IMAGES, 50) / IMAGES


def told_of(effect, spread, seeds, trials):
    """Return the told ones of comparisons whose true difference is known, of 128 images.

    Differences spread over seeds as given, and the images add a standard error of 0.35 points.
    """
    draw = np.random.default_rng((round(1e4 * effect), round(1e4 * spread), seeds))
    built = {
        method: [run(method, seed, resamples=2) for seed in range(seeds)]
        for method in ("baseline", "ema")
    }
    for _ in range(trials):
        runs = []
        for method, own in built.items():
            of_images = draw.normal(0, 0.0035 * math.sqrt(IMAGES / 2), IMAGES)
            resampled = WEIGHTS @ of_images
            values = 0.6 + effect * (method == "ema") + draw.normal(0, spread / 2**0.5, seeds)
            for one, value in zip(own, values.tolist(), strict=True):
                metrics = one.summary.metrics
                metrics = replace(
                    metrics,
                    final_value=value + float(of_images.mean()),
                    bootstrap=replace(
                        metrics.bootstrap, values=tuple((value + resampled).tolist())
                    ),
                )
                runs.append(loaded(replace(one.summary, metrics=metrics)))
        (finding,) = paired_differences(runs, [("ema", "baseline")])
        verdict = judge([finding])[finding]
        if verdict.tells:
            yield finding.say(verdict)


OVERSTATED = "may be overstated: a true "


@pytest.mark.parametrize(
    ("spread", "seeds", "times"), [(0.005, 3, 2.3), (0.005, 10, 2.0), (0.010, 10, 2.4)]
)
def test_a_gain_told_of_half_a_point_is_overstated_and_says_so(spread, seeds, times):
    effect, trials = 0.005, 600
    told = list(told_of(effect, spread, seeds, trials))
    assert 0.04 * trials < len(told) < 0.3 * trials  # this is what low power looks like
    sizes = np.array([abs(one.mean) for one in told]) / effect
    assert sizes.mean() == pytest.approx(times, abs=4 * sizes.std() / math.sqrt(len(told)))
    assert sum(OVERSTATED in one.sentence for one in told) >= 0.95 * len(told)


def test_a_gain_that_is_found_nearly_always_is_not_called_overstated():
    told = list(told_of(0.05, 0.010, 10, 60))
    assert len(told) >= 58
    assert np.mean([one.mean for one in told]) == pytest.approx(0.05, abs=0.003)
    assert not any(OVERSTATED in one.sentence for one in told)


def test_what_is_not_told_is_not_called_overstated():
    comparison = compare(runs_of(seeds=3, noise=0.01, baseline=0.6, ema=0.605))
    found = of(comparison, "ema", "baseline")
    assert not found.tells
    assert found.power.half_told_as > 0
    assert OVERSTATED not in found.sentence


def test_what_half_would_be_told_as_is_said_where_it_is_a_fifth_too_large():
    said = [
        words.overstated(0.04, Power(0.8, 0.02, 1.0, None, 0.01, 8, None, told_as))
        for told_as in (0.0239, 0.0241, None)
    ]
    assert list(map(bool, said)) == [False, True, False]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_words_of_what_may_be_overstated_have_its_sign(sign):
    power = Power(0.8, 0.02, 1.0, None, 0.01, 8, None, 0.0118)
    half, told_as = (f"{'+' if sign > 0 else '-'}{size}" for size in ("0.006", "0.012"))
    assert words.overstated(sign * 0.012, power) == (
        f"may be overstated: a true {half} would be told as {told_as} on average"
    )


def test_all_that_a_comparison_tests_is_one_family():
    comparison = compare(
        runs_of(baseline=0.6, ema=0.61, fp32=0.65, fp32_ema=0.66, ptq=0.5)
        + runs_of(mode="w3a16", baseline=0.5, ema=0.51)
    )
    found = list(contrasts(comparison))
    kinds = {type(contrast).__name__ for contrast in found}
    assert kinds == {"PairedDifference", "NetEffect", "AgainstPostTraining"}
    assert len(comparison.groups) == 2
    once = len(found) - 1  # fp32+ema against fp32 stands in both groups
    assert {contrast.corrected.size for contrast in found} == {once}
    for contrast in found:
        assert contrast.corrected.p_value >= contrast.p_value
        assert f"corrected over {once}" in contrast.sentence


def test_an_interval_that_excludes_zero_stays_visible_where_the_claim_does_not_stand():
    finals = {"baseline": (0.600, 0.610, 0.620), "ema": (0.609, 0.621, 0.634)}
    many = dict.fromkeys(("dampen", "freeze", "qc", "bn"), (0.6, 0.62, 0.61))
    runs = [
        run(name, seed, value, resamples=0)
        for name, values in {**finals, **many}.items()
        for seed, value in enumerate(values)
    ]
    found = of(compare(runs), "ema", "baseline")
    assert found.interval[0] > 0
    assert found.p_value < 0.05 < found.corrected.p_value
    assert not found.tells
    assert found.sentence.startswith("3 seeds do not tell ema from baseline: +0.011 [+0.00")


def test_the_primary_contrast_that_runs_declare_stands_by_itself():
    finals = {"baseline": 0.6, "ema": 0.61, "ema_qc": 0.62, "qc": 0.6}
    comparison = compare(runs_of(primary=("ema+qc", "baseline"), **finals))
    assert comparison.groups[0].primary == Primary("ema+qc", "baseline")
    found = of(comparison, "ema+qc", "baseline")
    assert (found.corrected.family, found.corrected.size) == ("primary", 1)
    assert found.corrected.p_value == found.p_value
    assert "; primary, p " in found.sentence
    others = [c for c in contrasts(comparison) if c is not found]
    assert {c.corrected.family for c in others} == {"all others"}
    assert {c.corrected.size for c in others} == {len(others)}


def test_where_runs_declare_different_things_or_nothing_all_is_corrected():
    one = runs_of(seeds=3, primary=("ema", "baseline"), baseline=0.6, ema=0.62)
    other = runs_of(seeds=3, primary=("ema+qc", "baseline"), ema_qc=0.62)
    for runs in ([*one, *other], runs_of(seeds=3, baseline=0.6, ema=0.62)):
        comparison = compare(runs)
        assert comparison.groups[0].primary is None
        assert {c.corrected.family for c in contrasts(comparison)} == {"all others"}


def test_what_was_declared_is_tested_though_it_is_no_usual_pair():
    comparison = compare(runs_of(primary=("dampen", "freeze"), dampen=0.6, freeze=0.61))
    found = of(comparison, "dampen", "freeze")
    assert found.corrected.family == "primary"


def test_primary_contrasts_of_two_groups_are_corrected_over_both():
    both = runs_of(primary=("ema", "baseline"), baseline=0.6, ema=0.61)
    both += runs_of(primary=("ema", "baseline"), mode="w3a16", baseline=0.5, ema=0.51)
    found = [of(compare(both), "ema", "baseline", group) for group in (0, 1)]
    assert [one.corrected.size for one in found] == [2, 2]
    assert "; primary, corrected over 2: p" in found[0].sentence


def test_half_of_the_baselines_collapse_and_the_rest_is_better_than_ema():
    runs = [run("baseline", s, 0.65 + 0.001 * s if s < 5 else 0.01) for s in range(10)]
    runs += [run("ema", s, 0.60 + 0.001 * (s % 3)) for s in range(10)]
    comparison = compare(runs)
    found = of(comparison, "ema", "baseline")
    assert found.mean == pytest.approx(-0.05, abs=0.003)
    assert (found.seeds, found.common_seeds, found.collapsed) == (5, 10, {"baseline": 5})
    assert not found.tells
    assert found.corrected is None
    assert found.sentence.startswith("where both held, 5 of 10 seeds, ema scores -0.051 [")
    assert found.sentence.endswith("no verdict: of 10 seeds collapsed baseline on 5")
    (rates,) = comparison.groups[0].collapse_differences
    assert (rates.collapsed, rates.reference_collapsed) == (0, 5)
    assert rates.corrected.size == 0  # five discordant seeds can tell nothing and cost nothing
    assert (found.beats.wins, found.beats.losses) == (5, 5)
    assert "better" not in rates.sentence + found.sentence


def test_a_run_that_diverged_is_dropped_from_no_sentence():
    """It was: better on 3 of 3 seeds, of four."""
    runs = runs_of(seeds=3, baseline=0.6, ema=0.63)
    lost = {"metrics": {"final_value": None}, "status": "completed-failed"}
    runs += [run("baseline", 3), run("ema", 3, changes=lost)]
    comparison = compare(runs)
    assert published(comparison, "comparison")
    found = of(comparison, "ema", "baseline")
    assert (found.seeds, found.common_seeds, found.collapsed) == (3, 4, {"ema": 1})
    assert not found.tells
    assert "where both held, 3 of 4 seeds" in found.sentence
    (_, rate) = comparison.groups[0].collapse_rates
    assert (rate.method, rate.collapsed, rate.diverged, rate.of) == ("ema", 1, 1, 4)


def test_where_a_method_never_held_its_rate_is_all_there_is():
    runs = runs_of(seeds=6, ema=0.6) + [run("baseline", seed, 0.01) for seed in range(6)]
    group = compare(runs).groups[0]
    assert group.differences == []
    (rates,) = group.collapse_differences
    assert rates.tells
    assert rates.sentence.startswith("ema collapses less often than baseline, on 0 of 6 seeds")


def test_a_primary_contrast_with_a_collapse_is_one_of_rates():
    runs = runs_of(seeds=7, primary=("ema", "baseline"), ema=0.6, qc=0.6)
    declared = {"primary": {"method": "ema", "reference": "baseline"}}
    runs += [run("baseline", s, 0.01 if s < 6 else 0.6, changes=declared) for s in range(7)]
    found = {d.method: d for d in compare(runs).groups[0].collapse_differences}
    assert found["ema"].corrected.family == "primary"
    assert found["ema"].corrected.p_value == pytest.approx(2 / 2**6)
    assert found["qc"].corrected.family == "all others"


@pytest.mark.parametrize(
    ("ema", "no_worse", "no_better", "said"),
    [
        (0.600, True, True, "; alike within 0.01; "),
        (0.620, True, False, "; no worse by 0.01 or more; "),
        (0.580, False, True, "; no better by 0.01 or more; "),
        (0.610, True, False, "; no worse by 0.01 or more; "),
    ],
)
def test_equivalence_against_a_margin(ema, no_worse, no_better, said):
    comparison = compare(runs_of(baseline=0.6, ema=ema), margin=0.01)
    assert comparison.margin == 0.01
    found = of(comparison, "ema", "baseline")
    assert (found.equivalence.no_worse, found.equivalence.no_better) == (no_worse, no_better)
    assert said in found.sentence
    assert found.power.target == 0.01


def test_too_few_seeds_show_neither_a_difference_nor_equivalence():
    found = of(compare(runs_of(seeds=2, baseline=0.6, ema=0.6), margin=0.005), "ema", "baseline")
    assert not found.tells
    assert "whether alike within 0.005 is open" in found.sentence


def test_a_margin_is_part_of_the_correction():
    finals = {"baseline": 0.6, "ema": 0.6, "dampen": 0.6, "freeze": 0.6}
    found = of(compare(runs_of(**finals), margin=0.01), "ema", "baseline")
    alone = of(compare(runs_of(baseline=0.6, ema=0.6), margin=0.01), "ema", "baseline")
    assert found.corrected.size == 3
    assert found.equivalence.no_worse_p_value > alone.equivalence.no_worse_p_value


@settings(max_examples=25)
@given(
    st.integers(1, 4),
    st.sampled_from([None, 0.004]),
    st.lists(st.sampled_from([0.01, 0.59, 0.6, 0.61, 0.64]), min_size=20, max_size=20),
)
def test_every_sentence_says_how_it_stands_and_what_it_could_have_found(seeds, margin, finals):
    values = iter(finals)
    names = ("baseline", "ema", "fp32", "fp32+ema", "ptq")
    runs = [run(name, s, next(values), resamples=20) for name in names for s in range(seeds)]
    comparison = compare(runs, margin=margin)
    for contrast in contrasts(comparison):
        said = contrast.sentence
        judged = contrast.corrected is not None
        assert judged == (contrast.seeds > 1 and not contrast.collapsed)
        assert bool(re.search(r"corrected over \d+|primary", said)) == judged
        assert bool(re.search(r"finds \d", said)) == judged
        assert contrast.tells <= judged
        assert not contrast.tells or contrast.p_value <= 0.05
        # nothing but the test against a margin words the absence of a difference
        alike = contrast.equivalence and contrast.equivalence.no_worse
        for word in ("equal", "same as", "no difference", "no effect", "alike within"):
            if word != "alike within" or not alike:
                assert word not in said.replace("whether alike within", "")
    for group in comparison.groups:
        rates = {rate.method: rate for rate in group.collapse_rates}
        assert rates.keys() == {run.method for run in runs}


DISPUTED = {
    "status": "completed-failed",
    "failed_checks": [{"name": "protocols", "detail": "the two disagree"}],
}
FOUR = ("baseline", "ema", "fp32", "fp32+ema", "ptq")


def with_disputed(method, seeds):
    """Return four seeds of methods that differ clearly, some of one of them disputed."""
    return [
        run(
            name,
            seed,
            0.5 + 0.05 * number + 0.0005 * seed,
            changes=DISPUTED if name == method and seed in seeds else None,
        )
        for number, name in enumerate(FOUR)
        for seed in range(4)
    ]


@pytest.mark.parametrize("disputed", ["baseline", "ema"])
def test_no_claim_rests_on_a_disputed_value_and_the_sentence_says_whose(disputed):
    comparison = compare(with_disputed(disputed, [2]))
    behind = [of(comparison, "ema", "baseline"), *comparison.groups[0].net_effects]
    assert len(behind) == 2
    for found in behind:
        assert not found.tells
        assert found.corrected is None
        assert (found.seeds, found.common_seeds, found.disputed) == (3, 4, {disputed: 1})
        assert [pair.seed for pair in found.pairs] == [0, 1, 3]
        assert found.sentence.endswith(
            f"; no verdict: of 4 seeds disputed by a check {disputed} on 1"
        )
    assert of(comparison, "fp32+ema", "fp32").tells  # of others everything is as it was
    published(comparison, "comparison")


def test_collapses_and_disputed_values_are_named_apart():
    runs = [r for r in with_disputed("ema", [1]) if (r.method, r.seed) != ("baseline", 0)]
    found = of(compare([*runs, run("baseline", 0, 0.01)]), "ema", "baseline")
    assert (found.collapsed, found.disputed) == ({"baseline": 1}, {"ema": 1})
    assert "collapsed baseline on 1 and disputed by a check ema on 1" in found.sentence


def test_where_every_value_is_disputed_no_difference_is_told():
    comparison = compare(with_disputed("ema", range(4)))
    group = comparison.groups[0]
    assert not [it for it in contrasts(comparison) if it.method == "ema"]
    assert {rate.method for rate in group.collapse_rates} == {*FOUR} - {"ema"}


def test_a_disputed_value_is_no_best_one():
    found = compare(with_disputed("ema", range(4))).groups[0].against_post_training
    assert (found.method, found.methods) == ("baseline", 1)
