import math

import pytest
import torch

from needlework.attention.hadamard import hadamard_sketch


@pytest.mark.parametrize(("d", "r"), [(32, 64), (32, 8), (24, 16)])
def test_sketch_is_a_signed_sample_of_the_hadamard_matrix(d, r):
    sketch = hadamard_sketch(d, r, seed=3)
    padded = 2 ** math.ceil(math.log2(d))
    assert sketch.shape == (d, min(r, padded))
    signs = sketch[:, :1].sign()
    # Up to signs, columns are distinct columns of the Hadamard matrix, (-1)^popcount(i & j).
    columns = {
        tuple((-1) ** bin(i & j).count("1") * (-1) ** bin(0).count("1") for i in range(d)): j
        for j in range(padded)
    }
    kinds = set()
    for column in (sketch * signs).T:
        entries = (column * sketch.shape[1] ** 0.5).round().int().tolist()
        assert set(entries) <= {-1, 1}
        kinds.add(columns[tuple(e * entries[0] for e in entries)])
    assert len(kinds) == sketch.shape[1]


def test_sketch_preserves_inner_products():
    """Exactly without subsampling, else in the mean over seeds."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 32)
    whole = hadamard_sketch(32, 64, seed=0)
    torch.testing.assert_close((x @ whole) @ (y @ whole), x @ y, rtol=1e-4, atol=1e-4)
    result = torch.stack(
        [(x @ s) @ (y @ s) for s in (hadamard_sketch(32, 8, seed) for seed in range(2000))]
    )
    assert abs(result.mean() - x @ y) < 4 * result.std() / 2000**0.5
