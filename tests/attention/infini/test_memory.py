import pytest
import torch

from needlework.attention.infini.memory import read, write


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_autocast_does_not_affect_the_memory(update):
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.rand(2, 1, 3, 1, 5, 4, generator=generator)
    start = torch.rand(1, 1, 4, 4, generator=generator)
    norm = torch.rand(1, 1, 4, generator=generator)

    def compute():
        memories, norms = write(keys, values, start, norm, update)
        return memories, norms, read(keys, memories[:, 1:], norms[:, 1:])

    exact = compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, compute(), exact))
