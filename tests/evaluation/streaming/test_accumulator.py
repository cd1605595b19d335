import numpy as np
import pytest
import torch

from needlework.evaluation.streaming.accumulator import Accumulator, Chunk


def _span(position: int) -> tuple[int, int]:
    """First position and end of the span of a position, by counting."""
    start = 1
    while 2 * start <= position:
        start *= 2
    width = max(1, start // 16)
    while start + width <= position:
        start += width
    return start, start + width


def _chunks() -> list[Chunk]:
    torch.manual_seed(0)
    chunks, position = [], 1
    for tokens in (1, 5, 30, 200, 700):
        losses = 5 * torch.rand(tokens)
        chunks.append(Chunk(0, position, losses, tokens, 0, 8, 0.5, 100))
        position += tokens
    return [*chunks, Chunk(1, 1, torch.rand(90), 90, 2, 8, 0.5, 100)]


def test_losses_by_position_match_counting_token_by_token():
    accumulator, spans = Accumulator(), {}
    for chunk in _chunks():
        accumulator.add(chunk)
        for i, loss in enumerate(chunk.losses.tolist()):
            spans.setdefault(_span(chunk.first_token + i), []).append(loss)
    rows = accumulator.positions().rows()
    assert [row[:2] for row in rows] == sorted(spans)
    for first, end, tokens, loss in rows:
        assert tokens == len(spans[first, end])
        assert loss == pytest.approx(np.mean(spans[first, end]), rel=1e-6)
    everything = [loss for chunk in _chunks() for loss in chunk.losses.tolist()]
    assert accumulator.loss == pytest.approx(np.mean(everything), rel=1e-6)
    assert len(accumulator) == 6


def test_an_accumulator_is_restored_completely():
    accumulator, restored = Accumulator(), Accumulator()
    for chunk in _chunks():
        accumulator.add(chunk)
    restored.restore(accumulator.tensors())
    assert restored.loss == accumulator.loss
    assert restored.positions().equals(accumulator.positions())
    assert restored["loss"].tolist() == accumulator["loss"].tolist()
    for each in (accumulator, restored):
        each.add(_chunks()[-1])
    assert restored.loss == accumulator.loss


def test_positions_of_ten_million_tokens():
    accumulator = Accumulator()
    accumulator.add(Chunk(0, 10_000_000, torch.ones(3), 3, 0, 0, 0.1, 0))
    ((first, end, tokens, _),) = accumulator.positions().rows()
    assert first <= 10_000_000 < 10_000_003 <= end
    assert tokens == 3
