"""Reference implementation of RoPE in plain Python."""

import math

import numpy as np


def rotate_vector(x, position, theta=10000):
    """RoPE of one vector, pairing its halves."""
    half = len(x) // 2
    rotated = np.zeros(len(x))
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        rotated[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        rotated[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return rotated
