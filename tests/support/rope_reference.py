"""RoPE by hand."""

import math

import numpy as np


def turned(x, position, theta=10000):
    """RoPE by halves of one vector."""
    half = len(x) // 2
    found = np.zeros(len(x))
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        found[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        found[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return found
