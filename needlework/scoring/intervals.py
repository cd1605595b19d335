"""Intervals for accuracies and for paired differences of accuracies.

Both are score intervals. They keep a sensible width if every answer is right or every answer is
wrong, where a bootstrap of 22 equal scores has a width of zero, and they draw no random numbers.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


def wilson(mean: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Bounds:
    """Two-sided interval of a mean of n independent scores in 0-1 (Wilson, 1927).

    For scores of 0 or 1 this is Wilson's interval of a proportion. For fractional scores it is
    conservative: it takes the variance to be mean * (1 - mean), the maximum for a variable on 0-1
    (Bhatia and Davis, 2000). The arrays broadcast; bounds are within 0-1 and contain the mean.
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
    intervals of both means, combined with the correlation of the scores; a positive covariance is
    first moved 1 / 2n towards zero. For fractional scores it is conservative, like `wilson`.
    """
    scores, baseline = np.asarray(scores, dtype=float), np.asarray(baseline, dtype=float)
    means = np.array([scores.mean(), baseline.mean()])
    low, high = wilson(means, len(scores), confidence)
    deviations = scores.std() * baseline.std()
    covariance = np.mean((scores - means[0]) * (baseline - means[1]))
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * len(scores)), 0.0)
    correlation = np.clip(covariance / deviations, -1, 1) if deviations > 0 else 0.0

    def arm(down: float, up: float) -> float:
        return float(np.sqrt(max(down**2 + up**2 - 2 * correlation * down * up, 0.0)))

    difference = float(means[0] - means[1])
    below, above = means - low, high - means
    return (
        max(difference - arm(below[0], above[1]), -1.0),
        min(difference + arm(above[0], below[1]), 1.0),
    )
