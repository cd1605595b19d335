"""Wilson and Newcombe intervals against definitions, references and exact coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest

from needlework.scoring.intervals import paired_difference, wilson

Z = 1.959963984540054


def score_bound(mean, n, side):
    """Root of (mean - p)^2 n = z^2 p (1 - p) on one side of the mean."""

    def excess(p):
        return (mean - p) ** 2 * n - Z**2 * p * (1 - p)

    far = (0.0, 1.0)[side]
    if mean == far:
        return far
    inner = mean if 0 < mean < 1 else abs(mean - 1e-12)
    return brentq(excess, *sorted((far, inner)), xtol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 22, 220])
def test_wilson_is_the_root_of_the_score_equation(n):
    means = np.array([0, 1 / n, 0.5, 1 - 1 / n, 1])
    low, high = wilson(means, n)
    assert low == pytest.approx([score_bound(mean, n, 0) for mean in means], abs=1e-9)
    assert high == pytest.approx([score_bound(mean, n, 1) for mean in means], abs=1e-9)
    assert low[0] == 0
    assert high[-1] == 1


def test_wilson_of_counts_equals_scipy():
    for n, k in [(5, 0), (5, 3), (22, 21), (22, 22), (500, 250)]:
        low, high = wilson(k / n, n)
        reference = binomtest(k, n).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.05, 0.9, 0.05), (0, 0.4, 0.6)])
def test_wilson_of_fractional_scores_covers_their_mean(weights):
    """Exact coverage probability over every outcome of nine scores of 0, 1/2 or 1."""
    scores, n = (0, 0.5, 1), 9
    truth = sum(weight * score for weight, score in zip(weights, scores, strict=True))
    covered = 0.0
    for zeros, halves in itertools.product(range(n + 1), repeat=2):
        ones = n - zeros - halves
        if ones < 0:
            continue
        ways = math.factorial(n) / math.prod(map(math.factorial, (zeros, halves, ones)))
        chance = ways * weights[0] ** zeros * weights[1] ** halves * weights[2] ** ones
        low, high = wilson((halves / 2 + ones) / n, n)
        covered += chance * (low <= truth <= high)
    assert covered >= 0.95


def table_scores(both, ours, theirs, neither):
    pairs = [(1, 1)] * both + [(1, 0)] * ours + [(0, 1)] * theirs + [(0, 0)] * neither
    return np.array(pairs, dtype=float).T


def newcombe(a, b, c, d):
    """Square-and-add from the 2 x 2 table, with corrected phi and root-finding bounds."""
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    l1, u1, l2, u2 = (score_bound(p, n, side) for p in (p1, p2) for side in (0, 1))
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    phi = (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins or 1)
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return p1 - p2 - math.sqrt(max(down, 0)), p1 - p2 + math.sqrt(max(up, 0))


@pytest.mark.parametrize(
    "table",
    [(20, 12, 2, 16), (22, 0, 0, 0), (0, 22, 0, 0), (10, 0, 0, 12), (5, 5, 4, 8), (15, 3, 4, 0)],
)
def test_paired_difference_is_square_and_add(table):
    interval = paired_difference(*table_scores(*table))
    assert interval == pytest.approx(newcombe(*table), abs=1e-7)


def test_paired_difference_has_a_width_if_all_answers_agree():
    low, high = paired_difference(np.ones(22), np.ones(22))
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1 - score_bound(1, 22, 0))


@pytest.mark.parametrize(
    "weights", [(0.9, 0.04, 0.04, 0.02), (0.5, 0.3, 0.05, 0.15), (0.25, 0.25, 0.25, 0.25)]
)
def test_paired_difference_covers_the_true_difference(weights):
    """Exact coverage probability over every 2 x 2 table of 16 pairs: near 95 %."""
    n, truth, covered = 16, weights[1] - weights[2], 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if (d := n - a - b - c) < 0:
            continue
        ways = math.factorial(n) / math.prod(map(math.factorial, (a, b, c, d)))
        chance = ways * math.prod(w**k for w, k in zip(weights, (a, b, c, d), strict=True))
        low, high = paired_difference(*table_scores(a, b, c, d))
        covered += chance * (low <= truth <= high)
    assert 0.94 <= covered <= 1


def test_paired_difference_of_fractional_scores_agrees_with_an_exhaustive_bootstrap():
    """Every one of the 5^5 resamples: the bootstrap interval lies within the score interval."""
    ours, theirs = np.array([0.25, 1, 0.5, 0.75, 1]), np.array([0.25, 0.5, 0, 0.75, 0.5])
    differences = ours - theirs
    means = [np.mean(sample) for sample in itertools.product(differences, repeat=5)]
    low, high = paired_difference(ours, theirs)
    assert low <= np.quantile(means, 0.025)
    assert np.quantile(means, 0.975) <= high
    assert low < differences.mean() < high
    assert (low, high) == pytest.approx([-x for x in paired_difference(theirs, ours)[::-1]])
