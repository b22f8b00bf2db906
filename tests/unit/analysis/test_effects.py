"""What methods gain net of their controls, and the sentences that say it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qatval.analysis.claims import NotNet
from qatval.analysis.effects import effects_of, net_sentence, not_net
from qatval.analysis.effects import net_effects as found_net_effects
from qatval.analysis.family import Verdict, judge
from qatval.analysis.intervals import MeanContrast, Term
from qatval.analysis.measuring import Measured
from qatval.testing import build_summary, loaded


def run(method, seed, final, **more):
    return loaded(build_summary(method, seed, (0.3, 0.5, final), **more))


def net_effects(runs, mode):
    """Return what is said of the net effects of runs that are compared alone."""
    findings = found_net_effects(runs, mode)
    verdicts = judge(findings)
    return [finding.say(verdicts.get(finding)) for finding in findings]


AVERAGING = ("ema", "baseline", "fp32+ema", "fp32")
finals = st.floats(0.3, 0.9).map(lambda value: round(value, 6))


@pytest.mark.parametrize(
    ("name", "reference", "controls"),
    [
        ("ema", "baseline", {"averaging": ("fp32+ema", "fp32")}),
        ("dampen+ema", "dampen", {"averaging": ("fp32+ema", "fp32")}),
        (
            "qc",
            "baseline",
            {"correction": ("bn", "baseline"), "correction-in-float": ("fp32+qc", "fp32")},
        ),
        (
            "ema+qc",
            "ema",
            {"correction": ("ema+bn", "ema"), "correction-in-float": ("fp32+ema+qc", "fp32+ema")},
        ),
        (
            "dampen+ema+qc",
            "dampen+ema",
            {
                "correction": ("dampen+ema+bn", "dampen+ema"),
                "correction-in-float": ("fp32+ema+qc", "fp32+ema"),
            },
        ),
    ],
)
def test_what_a_gain_has_to_exceed(name, reference, controls):
    found = effects_of(name)
    assert {one.kind: one.control for one in found} == controls
    assert {one.gain for one in found} == {(name, reference)}


@pytest.mark.parametrize(
    "name",
    ["baseline", "dampen", "fp32", "fp32+ema+qc", "ema+bn", "ptq", "of another tool", "ema+x"],
)
def test_what_has_no_control(name):
    assert effects_of(name) == []


@given(st.lists(st.tuples(finals, finals, finals, finals), min_size=1, max_size=5))
def test_a_net_effect_is_the_plain_formula_on_every_seed(seeds):
    runs = [
        run(method, seed, final)
        for seed, four in enumerate(seeds)
        for method, final in zip(AVERAGING, four, strict=True)
    ]
    (found,) = net_effects(runs, "w4a16")
    plain = [(m - r) - (c - cr) for m, r, c, cr in seeds]
    assert [pair.difference for pair in found.pairs] == pytest.approx(plain, abs=1e-9)
    assert found.mean == pytest.approx(sum(plain) / len(plain), abs=1e-9)
    assert found.mean == pytest.approx(found.gain - found.control_gain, abs=1e-9)
    assert found.shared_training
    assert found.images_resampled


@given(st.lists(st.tuples(finals, finals, finals), min_size=3, max_size=5))
def test_equal_gains_leave_nothing_and_do_not_tell(seeds):
    assume(all(cr + m - r > 0.3 for r, cr, m in seeds))
    runs = [
        run(method, seed, final, resamples=0)
        for seed, (r, cr, m) in enumerate(seeds)
        for method, final in zip(AVERAGING, (m, r, cr + m - r, cr), strict=True)
    ]
    (found,) = net_effects(runs, "w4a16")
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert not found.tells
    assert "no gain beyond that of averaging by itself is shown" in found.sentence


def test_only_seeds_that_have_all_four_count():
    runs = [
        run(method, seed, 0.6)
        for seed in (0, 1, 2)
        for method in AVERAGING
        if (method, seed) not in [("fp32", 1), ("ema", 2)]
    ]
    (found,) = net_effects(runs, "w4a16")
    assert [pair.seed for pair in found.pairs] == [0]


def test_incomplete_controls_are_no_controls():
    runs = [run(method, 0, 0.6) for method in AVERAGING[:3]]
    assert net_effects([*runs, run("fp32", 0, 0.6, error="interrupted")], "w4a16") == []
    assert not_net([*runs, run("fp32", 0, 0.6, error="interrupted")]).missing == ["fp32"]


def test_gains_stay_within_their_own_training():
    """Two quantized trainings of one seed: each gain is taken within its own."""

    def of(method, trajectory, final):
        changes = {"run_id": f"{method} {trajectory}", "training": {"trajectory": trajectory}}
        return run(method, 0, final, changes=changes)

    runs = [
        of("baseline", "a", 0.60),
        of("ema", "a", 0.61),
        of("baseline", "b", 0.40),
        of("ema", "b", 0.43),
        of("fp32", "c", 0.65),
        of("fp32+ema", "c", 0.66),
    ]
    (found,) = net_effects(runs, "w4a16")
    assert found.mean == pytest.approx((0.01 + 0.03) / 2 - 0.01)
    assert found.seeds == 1


def test_a_collapse_behind_a_mean_is_named_and_leaves_no_claim():
    runs = [run(method, seed, 0.6) for method in AVERAGING for seed in range(5)]
    gaining = [run("ema", seed, 0.7 + 0.001 * seed) for seed in range(5)]
    runs = [*gaining, *(r for r in runs if r.method != "ema")]
    collapsed = [r for r in runs if (r.method, r.seed) != ("baseline", 1)]
    collapsed.append(run("baseline", 1, 0.1))
    (held,), (found,) = net_effects(runs, "w4a16"), net_effects(collapsed, "w4a16")
    assert held.tells
    assert "collapsed" not in held.sentence
    assert not found.tells
    assert (found.seeds, found.common_seeds, found.collapsed) == (4, 5, {"baseline": 1})
    assert found.sentence.endswith("; no verdict: of 5 seeds collapsed baseline on 1")
    assert ", so " not in found.sentence


def test_a_control_that_collapsed_is_not_missing():
    runs = [run(method, 0, 0.6) for method in AVERAGING[:3]]
    assert not_net([*runs, run("fp32", 0, 0.1)]) is None


def test_a_group_says_once_which_gains_are_not_net():
    runs = [run(method, 0, 0.6) for method in ("baseline", "ema", "ema+qc")]
    assert not_net(runs) == NotNet(
        ["fp32", "fp32+ema", "fp32+ema+qc", "ema+bn"],
        "the gains of ema over baseline and ema+qc over ema are not net of every "
        "control: fp32, fp32+ema, fp32+ema+qc and ema+bn are missing (run with --with-controls)",
    )
    averaging = [*runs, run("fp32", 0, 0.6), run("fp32+ema", 0, 0.6)]
    assert not_net(averaging).sentence == (
        "the gain of ema+qc over ema is not net of every control: fp32+ema+qc and ema+bn are "
        "missing (run with --with-controls)"
    )
    fresh = [*averaging, run("ema+bn", 0, 0.6)]
    assert not_net(fresh).missing == ["fp32+ema+qc"]
    assert not_net([*fresh, run("fp32+ema+qc", 0, 0.6)]) is None


def test_controls_of_other_seeds_are_missing_too():
    runs = [run("baseline", 0, 0.6), run("ema", 0, 0.6), run("fp32", 0, 0.6)]
    apart = [*runs, run("fp32+ema", 1, 0.6)]
    assert net_effects(apart, "w4a16") == []
    assert not_net(apart).missing == ["fp32+ema"]


def test_where_no_gain_is_reported_none_lacks_a_control():
    assert not_net([run("ema", 0, 0.6), run("baseline", 1, 0.6)]) is None
    assert not_net([run("fp32", 0, 0.6), run("fp32+ema", 0, 0.6)]) is None


SENTENCES = {
    "less than in FP32": ("ema", 0.002, 0.020, (-0.030, -0.006), 5),
    "less than in FP32, and a loss": ("ema", -0.002, 0.020, (-0.034, -0.010), 5),
    "more than in FP32": ("ema", 0.020, 0.002, (0.006, 0.030), 5),
    "more than in FP32, but no gain": ("ema", -0.002, -0.020, (0.006, 0.030), 5),
    "undecided": ("ema", 0.004, 0.002, (-0.005, 0.009), 5),
    "two seeds": ("ema", 0.020, 0.002, (-0.132, 0.168), 2),
    "one seed": ("dampen+ema", 0.020, 0.002, None, 1),
    "QC, less": ("ema+qc", 0.004, 0.009, (-0.008, -0.002), 5),
    "QC, more": ("ema+qc", 0.009, 0.004, (0.002, 0.008), 5),
    "QC, more, but no gain": ("qc", -0.001, -0.004, (0.001, 0.005), 5),
    "QC, undecided": ("dampen+ema+qc", 0.004, -0.003, (-0.001, 0.015), 3),
    "QC, less than in FP32": ("ema+qc", 0.004, 0.009, (-0.008, -0.002), 5),
    "QC, more than in FP32": ("ema+qc", 0.009, 0.004, (0.002, 0.008), 5),
    "QC, more than in FP32, but no gain": ("qc", -0.001, -0.004, (0.001, 0.005), 5),
    "QC, not told from QC in FP32": ("dampen+ema+qc", 0.004, -0.003, (-0.001, 0.015), 3),
    "QC, one seed": ("ema+qc", 0.004, 0.009, None, 1),
}


def judged(mean, half, seeds):
    """Return a net effect of so many seeds, with the interval and the verdict that follow."""
    one_seed = half is None or seeds == 1
    term = None if one_seed else Term((half / 1.96) ** 2, 10**9)
    measured = MeanContrast(seeds, mean, term, None, seeds, 0)
    net = Measured(measured, [], True, seeds, {}, {}, None, frozenset())
    test = net.test()
    return net, test and Verdict("all others", 1, 1, test.p_values, 0.05)


@pytest.mark.parametrize("case", SENTENCES)
def test_the_sentence(snapshot, case):
    name, gain, control_gain, interval, seeds = SENTENCES[case]
    meant = effects_of(name)[-1 if "in FP32" in case and "QC" in case else 0]
    half = interval and (interval[1] - interval[0]) / 2
    net, verdict = judged(gain - control_gain, half, seeds)
    assert net_sentence(meant, "w4a16", gain, control_gain, net, verdict) == snapshot


@given(finals, finals, st.floats(0, 0.2), st.integers(1, 9))
def test_no_sentence_claims_more_than_the_numbers_say(gain, control_gain, half, seeds):
    mean = gain - control_gain
    net, verdict = judged(mean, half, seeds)
    tells = verdict is not None and verdict.tells
    for meant in (*effects_of("ema"), *effects_of("ema+qc")):
        text = net_sentence(meant, "w4a16", gain, control_gain, net, verdict)
        assert ("cannot tell" in text) == (seeds == 1)
        assert (", so " in text) == tells
        assert ("does more" in text) == (tells and mean > 0)
        assert ("does less" in text) == (tells and mean < 0)
