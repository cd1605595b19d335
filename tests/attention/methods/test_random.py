from types import SimpleNamespace

import torch

from needlework.attention.blocks import Blocks, choose
from needlework.attention.masks import LazyMask
from needlework.attention.methods.random import Method
from needlework.config.attention.random import Random


def drawn(system, lengths, total, new, layer=0):
    """Chosen blocks [batch, rows, k] for rows of `lengths` real tokens, padded on the left."""
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[total - length :] = True
    mask = LazyMask(len(lengths), new, total, total - new, attention_mask=real)
    forward = SimpleNamespace(
        shared={},
        blocks=Blocks(mask, system, torch.device("cpu")),
        is_decode=new == 1 and total > 1,
    )
    scores = Method(system).scores(layer, torch.zeros(1), torch.zeros(1), forward)
    return choose(scores, forward.blocks)


def test_earlier_blocks_are_equally_likely_and_the_own_block_is_kept():
    system = Random(block_size=1, density=0.25)
    chosen = torch.cat([drawn(system, [400], 400, 400, layer) for layer in range(30)])
    assert torch.equal(chosen[..., 0], torch.arange(400).expand(30, -1))
    last = chosen[:, 199:, 1:]
    share = torch.bincount(last[last >= 0], minlength=400)[:200] / (30 * 201)
    # Rows 199..399 keep about a quarter of the blocks before them.
    assert abs(share.mean() - 0.25) < 0.01
    assert share.std() < 0.01


def test_draw_depends_only_on_seed_and_layer():
    system = Random(block_size=4, density=0.5)
    whole = drawn(system, [60], 60, 60)
    assert torch.equal(whole, drawn(system, [60], 60, 60))
    assert not torch.equal(whole, drawn(system, [60], 60, 60, layer=1))
    other = Random(block_size=4, density=0.5, seed=43)
    assert not torch.equal(whole, drawn(other, [60], 60, 60))


def test_draw_is_the_same_in_a_batch_and_in_chunks():
    system = Random(block_size=4, density=0.5)
    whole = drawn(system, [60], 60, 60)
    padded = drawn(system, [71, 60], 71, 71)
    assert torch.equal(padded[1, :15, :8], whole[0])
    assert torch.equal(drawn(system, [60], 60, 20)[0], whole[0, 10:])


def test_each_decoded_token_has_its_own_draw():
    system = Random(block_size=16, density=0.5)
    draws = {tuple(drawn(system, [n], n, 1)[0, 0].tolist()) for n in range(322, 330)}
    assert len(draws) > 1
    assert all(draw[0] == 20 for draw in draws)
