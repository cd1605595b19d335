"""Intervals for accuracies and for paired differences of accuracies.

Both are score intervals: they keep a sensible width where every answer is right or wrong, where a
bootstrap of 22 equal scores would report a width of zero, and they draw no random numbers.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


def wilson(mean: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Bounds:
    """Interval of a mean of n independent scores in 0-1, two-sided (Wilson, 1927).

    For scores of 0 or 1 this is Wilson's interval of a proportion. For fractional scores it is
    conservative: it takes the variance to be mean * (1 - mean), which no variable on 0-1 exceeds
    (Bhatia and Davis, 2000). The arrays broadcast; bounds are within 0-1 and hold the mean.
    """
    mean, n = np.asarray(mean, dtype=float), np.asarray(n, dtype=float)
    z = ndtri(0.5 + confidence / 2)
    scale = 1 / (1 + z**2 / n)
    center = scale * (mean + z**2 / (2 * n))
    half = scale * z * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    low, high = np.clip(center - half, 0, mean), np.clip(center + half, mean, 1)
    return np.where(mean == 0, 0.0, low), np.where(mean == 1, 1.0, high)


def paired_difference(
    scores: ArrayLike, baseline: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(scores) - mean(baseline) over the same n samples, scores in 0-1.

    Newcombe's (1998, method 10) square-and-add interval for paired proportions: the Wilson
    intervals of both means, joined by the correlation of the scores, a positive covariance being
    first brought 1 / 2n nearer to zero. For fractional scores it is conservative as `wilson` is.
    """
    scores, baseline = np.asarray(scores, dtype=float), np.asarray(baseline, dtype=float)
    means = np.array([scores.mean(), baseline.mean()])
    low, high = wilson(means, len(scores), confidence)
    spread = scores.std() * baseline.std()
    covariance = np.mean((scores - means[0]) * (baseline - means[1]))
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * len(scores)), 0.0)
    correlation = np.clip(covariance / spread, -1, 1) if spread > 0 else 0.0

    def reach(down: float, up: float) -> float:
        return float(np.sqrt(max(down**2 + up**2 - 2 * correlation * down * up, 0.0)))

    difference = float(means[0] - means[1])
    below, above = means - low, high - means
    return (
        max(difference - reach(below[0], above[1]), -1.0),
        min(difference + reach(above[0], below[1]), 1.0),
    )
