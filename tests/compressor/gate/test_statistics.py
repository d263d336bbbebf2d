"""The tests that decide, put to the proof by simulation: how often they are wrong, how often they see what is there.

Figures of a simulation have an error of their own: `BOUND` is what 5% may look like in `TRIALS` trials, three standard
errors up.
"""

import numpy as np
import pytest
from scipy import optimize, stats

from compressor.gate.statistics import ClusteredChange, MeanChange, PairedProportions, detectable, holm

ALPHA = 0.05
TRIALS = 2000
BOUND = ALPHA + 3 * (ALPHA * (1 - ALPHA) / TRIALS) ** 0.5  # 6.5%
RESAMPLES = 999


def documents(clusters, seed, drop=0.0, shared=0.05, size=40):
    """Right answers lost in documents: a token is lost or gained with 10% each, more so in some documents than others.

    `shared` is the spread of a document's own drop, which all its tokens have in common. Returns (lost, gained, sizes),
    each [clusters, TRIALS].
    """
    draw = np.random.default_rng(seed)
    sizes = draw.poisson(size, (clusters, TRIALS)) + 10
    own = drop + shared * draw.uniform(-(3**0.5), 3**0.5, sizes.shape)
    lost = draw.binomial(sizes, 0.1 + own / 2)
    gained = draw.binomial(sizes, 0.1 - own / 2)
    return lost, gained, sizes


def clustered(lost, gained, sizes):
    return ClusteredChange.of((lost - gained).astype(float), sizes.astype(float), grain=1.0, resamples=RESAMPLES)


def share(events):
    return float(np.mean(events))


# ---- false alarms, and false passes


@pytest.mark.parametrize("clusters", [20, 60, 200])
def test_no_drop_raises_an_alarm_five_times_in_a_hundred_at_most(clusters):
    change = clustered(*documents(clusters, seed=clusters))
    assert share(change.p_beyond(0.0) <= ALPHA) < BOUND
    assert share(change.p_beyond(0.02) <= ALPHA) < 0.01, "a limit leaves room"


@pytest.mark.parametrize("clusters", [20, 60, 200])
def test_a_drop_as_large_as_the_limit_passes_and_fails_five_times_in_a_hundred_at_most(clusters):
    change = clustered(*documents(clusters, seed=clusters + 1, drop=0.02))
    _, upper = change.bounds(ALPHA)
    assert share(upper <= 0.02) < BOUND
    assert share(change.p_beyond(0.02) <= ALPHA) < BOUND


@pytest.mark.parametrize("clusters", [24, 100])
def test_losses_of_windows_keep_their_error_too(clusters):
    draw = np.random.default_rng(7)
    sizes = np.full((clusters, TRIALS), 511.0)
    change = ClusteredChange.of(sizes * draw.normal(0.02, 0.05, sizes.shape), sizes, resamples=RESAMPLES)
    lower, upper = change.bounds(ALPHA)
    assert share(upper < 0.02) < BOUND
    assert share(lower > 0.02) < BOUND
    assert share(upper < 0.02) > 0.03, "nor is it wider than it has to be"


# ---- power


def test_a_drop_of_two_points_is_found_at_the_size_that_is_said_to_find_it():
    clusters = 150
    change = clustered(*documents(clusters, seed=3, drop=0.02))
    reach = (stats.t.ppf(1 - ALPHA, clusters - 1) + stats.t.ppf(0.8, clusters - 1)) * change.stderr
    assert np.median(reach) <= 0.02, "150 documents of 50 tokens are said to be enough"
    assert share(change.p_beyond(0.0) <= ALPHA) >= 0.8
    one = ClusteredChange(change.value[0], change.stderr[0], clusters, change.pivots[:, :1])
    assert detectable(one, ALPHA) == pytest.approx(reach[0])


def test_what_could_be_seen_is_seen_four_times_in_five_on_both_sides_of_the_limit():
    clusters, limit = 100, 0.03
    change = clustered(*documents(clusters, seed=4))
    reach = np.median((stats.t.ppf(0.95, 99) + stats.t.ppf(0.8, 99)) * change.stderr)
    worse = clustered(*documents(clusters, seed=5, drop=limit + reach))
    better = clustered(*documents(clusters, seed=6, drop=limit - reach))
    assert share(worse.p_beyond(limit) <= ALPHA) == pytest.approx(0.8, abs=0.05)
    assert share(better.bounds(ALPHA)[1] <= limit) == pytest.approx(0.8, abs=0.05)


# ---- why clusters


def test_tokens_taken_for_independent_raise_false_alarms_where_documents_do_not():
    lost, gained, sizes = documents(60, seed=8, shared=0.04, size=200)
    naive = stats.binom.sf(lost.sum(0) - 1, (lost + gained).sum(0), 0.5)
    assert share(naive <= ALPHA) > 0.1, "twice what it promises"
    assert share(clustered(lost, gained, sizes).p_beyond(0.0) <= ALPHA) < BOUND


# ---- the bootstrap itself


def test_bounds_and_p_value_say_the_same():
    change = clustered(*documents(30, seed=9))
    lower, _ = change.bounds(ALPHA)
    limits = np.linspace(-0.05, 0.05, 21)
    for limit in limits:
        assert np.array_equal(change.p_beyond(limit) <= ALPHA, lower > limit)


def test_it_agrees_with_scipys_bootstrap_where_that_can_do_it():
    """Equal clusters make it a mean of clusters, and a large number of them makes all kinds of bootstrap agree."""
    means = np.random.default_rng(10).normal(0.1, 1.0, 400)
    ours = ClusteredChange.of(means * 30, np.full(400, 30.0)).bounds(ALPHA)
    theirs = stats.bootstrap((means,), np.mean, confidence_level=0.9, rng=0, method="BCa").confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.006)


def test_the_same_data_give_the_same_bounds():
    first, again = (clustered(*documents(25, seed=11)).bounds(ALPHA) for _ in range(2))
    assert np.array_equal(first, again)


def test_resampling_in_pieces_changes_nothing(monkeypatch):
    sums, sizes = np.random.default_rng(12).normal(size=(2, 30)) ** 2
    whole = ClusteredChange.of(sums, sizes, resamples=500)
    monkeypatch.setattr("compressor.gate.statistics.ELEMENTS_AT_ONCE", 30 * 7)
    assert ClusteredChange.of(sums, sizes, resamples=500).pivots == pytest.approx(whole.pivots)


def test_no_difference_at_all_is_certain():
    same = ClusteredChange.of(np.zeros(20), np.full(20, 50.0), grain=1.0)
    assert same.bounds(ALPHA) == (0.0, 0.0)
    assert same.p_beyond(0.0) > ALPHA
    equal = ClusteredChange.of(np.full(20, 5.0), np.full(20, 50.0))
    assert equal.bounds(ALPHA) == (0.1, 0.1)
    assert equal.p_beyond(0.05) <= ALPHA
    assert equal.p_beyond(0.2) > ALPHA


def test_one_flip_among_many_tokens_has_a_bound_all_the_same():
    sums = np.zeros(24)
    sums[3] = 1.0
    lower, upper = ClusteredChange.of(sums, np.full(24, 511.0), grain=1.0).bounds(ALPHA)
    assert -0.001 < lower <= 0 < upper < 0.001


# ---- right and wrong


@pytest.mark.parametrize(
    ("lost", "gained", "two_sided"),  # statsmodels 0.14, mcnemar(..., exact=True)
    [(5, 0, 0.0625), (15, 5, 0.04138946533203125), (121, 59, 4.4344492637551645e-06), (200, 150, 0.008720036530555947)],
)
def test_mcnemar_is_that_of_statsmodels_and_scipy(lost, gained, two_sided):
    change = PairedProportions(1000, lost, gained)
    assert 2 * change.mcnemar == pytest.approx(two_sided, rel=1e-9)
    assert change.mcnemar == pytest.approx(stats.binomtest(lost, lost + gained, alternative="greater").pvalue)
    assert change.p_beyond(0.0) >= change.mcnemar


@pytest.mark.parametrize(("lost", "gained"), [(7, 2), (0, 0), (0, 4), (12, 12), (3, 0)])
@pytest.mark.parametrize("drop", [-0.1, 0.0, 0.03, 0.2])
def test_the_score_is_that_of_the_constrained_likelihood(lost, gained, drop):
    """The share that is gained, given the drop, is the one that makes the table most likely."""
    n = 50

    def unlikely(gaining):
        losing, rest = gaining + drop, 1 - 2 * gaining - drop
        counts = (lost, losing), (gained, gaining), (n - lost - gained, rest)
        return -sum(count * np.log(max(share, 1e-300)) for count, share in counts if count)

    low, high = max(0.0, -drop), (1 - drop) / 2
    gaining = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * gaining + drop - drop**2)
    expected = (lost - gained - n * drop) / np.sqrt(variance) if variance > 1e-6 else 0.0
    assert PairedProportions(n, lost, gained)._score(drop) == pytest.approx(expected, abs=2e-3)


def test_bounds_are_where_the_score_is_the_quantile():
    change = PairedProportions(300, 20, 8)
    lower, upper = change.bounds(ALPHA)
    assert lower < change.value < upper
    assert change._score(lower) == pytest.approx(stats.norm.ppf(0.95))
    assert change._score(upper) == pytest.approx(-stats.norm.ppf(0.95))
    assert PairedProportions(20, 0, 0).bounds(ALPHA) == pytest.approx((-0.119, 0.119), abs=0.001), (
        "nothing is not proof"
    )


@pytest.mark.parametrize(("lost", "gained"), [(20, 0), (0, 20)])
def test_all_lost_and_all_gained_have_bounds(lost, gained):
    lower, upper = PairedProportions(20, lost, gained).bounds(ALPHA)
    assert -1 <= lower <= upper <= 1


def test_samples_that_are_right_or_wrong_keep_their_error_and_find_two_points():
    draw = np.random.default_rng(13)
    n = 1500

    def decisions(drop, limit):
        lost, gained = draw.binomial(n, 0.03 + drop, TRIALS), draw.binomial(n, 0.03, TRIALS)
        changes = [PairedProportions(n, int(a), int(b)) for a, b in zip(lost, gained, strict=True)]
        failed = share([change.p_beyond(limit) <= ALPHA for change in changes])
        passed = share([-change._score(limit) >= stats.norm.ppf(1 - ALPHA) for change in changes])
        return failed, passed, np.median([detectable(change, ALPHA) for change in changes[:20]])

    assert decisions(0.0, 0.0)[0] < BOUND
    failed, passed, _ = decisions(0.02, 0.02)
    assert failed < BOUND
    assert passed < BOUND
    found, _, reach = decisions(0.02, 0.0)
    assert reach < 0.02
    assert found >= 0.8


# ---- several metrics


def test_holm_is_that_of_statsmodels():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # multipletests(method="holm")
    assert holm([0.04]) == [0.04]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_three_metrics_raise_no_more_false_alarms_than_one():
    p_values = np.random.default_rng(14).uniform(size=(TRIALS, 3))
    assert share((p_values <= ALPHA).any(axis=1)) > 0.12
    assert share([min(holm(list(row))) <= ALPHA for row in p_values]) < BOUND


# ---- times


def test_times_are_compared_by_their_logarithms_as_scipy_does():
    draw = np.random.default_rng(15)
    before, after = np.exp(draw.normal(0, 0.1, 6)), np.exp(draw.normal(0.1, 0.1, 6))
    paired = MeanChange.of_times(before, after, paired=True)
    theirs = stats.ttest_rel(np.log(after), np.log(before)).confidence_interval(0.9)
    assert paired.bounds(ALPHA) == pytest.approx(tuple(theirs))
    apart = MeanChange.of_times(before, after, paired=False)
    theirs = stats.ttest_ind(np.log(after), np.log(before), equal_var=False)
    assert apart.bounds(ALPHA) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert apart.p_beyond(0.0) == pytest.approx(theirs.pvalue / 2)


def test_turns_cancel_what_the_machine_does():
    drift = np.exp(np.linspace(0, 1, 5))
    noise = np.array([1.0, 1.01, 0.99, 1.0, 1.01])
    paired = MeanChange.of_times(drift, drift * 1.1 * noise, paired=True)
    apart = MeanChange.of_times(drift, drift * 1.1 * noise, paired=False)
    assert paired.p_beyond(np.log(1.05)) < 0.01
    assert apart.p_beyond(np.log(1.05)) > 0.3


def test_repeats_without_any_spread():
    change = MeanChange.of_times(np.full(3, 1.0), np.full(3, 2.0), paired=True)
    assert change.p_beyond(0.1) == 0
    assert change.p_beyond(1.0) == 1
