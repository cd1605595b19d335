import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streamed_models import Stateless, make
from support.streaming import (
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
    strided_losses,
)

from needlework.evaluation.streaming.accumulator import Accumulator


def test_chunks_without_overlap_score_the_first_token_of_the_next_chunk():
    model, ids = Stateless(), random_ids(31)
    results = evaluate_with_losses(evaluator_of(model, 10), ids)
    expected = []
    for start in (0, 10, 20):
        expected += one_pass_losses(model, ids[start : start + 11])
    assert results["mode"] == "strided"
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_strided_windows_equal_a_plain_loop(data):
    model = Stateless()
    window = data.draw(st.integers(2, 40))
    overlap = data.draw(st.integers(1, window - 1))
    ids = random_ids(data.draw(st.integers(2, 120)))
    window_batch_size = data.draw(st.integers(1, 5))
    evaluator, accumulator = (
        evaluator_of(model, window, overlap, window_batch_size=window_batch_size),
        Accumulator(),
    )
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    losses = torch.cat([chunk.losses for chunk in chunks]).tolist()
    assert losses == pytest.approx(strided_losses(model, ids, window, overlap), rel=1e-5, abs=1e-5)
    position = 1
    for chunk in chunks:
        assert chunk.first_token == position
        position += chunk.tokens
    assert position == len(ids)


def test_strided_windows_of_a_transformer():
    model, ids = make("llama"), random_ids(200)
    expected = strided_losses(model, ids, 64, 32)
    for window_batch_size in (1, 3):
        results = evaluate_with_losses(
            evaluator_of(model, 64, 32, window_batch_size=window_batch_size), ids
        )
        assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert results["num_chunks"] == 6


def losses_of_windows_with_bos(model, ids: torch.Tensor, window: int, overlap: int) -> list[float]:
    """Losses of windows that all start with ids[0]; the first that contains a token scores it."""
    losses, start, scored = [], 0, 1
    while scored < len(ids):
        head = ids[:1] if start else ids[:0]
        read = torch.cat([head, ids[start : start + window - len(head)]])
        losses += one_pass_losses(model, read, scored - start + len(head))
        scored = start + len(read) - len(head)
        start = scored - overlap
    return losses


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_window_starts_with_bos(data):
    model = Stateless()
    window = data.draw(st.integers(3, 40))
    overlap = data.draw(st.integers(1, window - 2))
    ids = random_ids(data.draw(st.integers(2, 120)))
    batch = data.draw(st.integers(1, 5))
    evaluator = evaluator_of(model, window, overlap, window_batch_size=batch, repeat_first=True)
    chunks = list(evaluator.chunks(ids))
    expected = losses_of_windows_with_bos(model, ids, window, overlap)
    assert torch.cat([chunk.losses for chunk in chunks]).tolist() == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )
    position = 1
    for chunk in chunks:
        assert chunk.first_token == position
        position += chunk.tokens
    assert position == len(ids)


def test_chunks_without_overlap_start_with_bos():
    model, ids = Stateless(), random_ids(31)
    for batch in (1, 3):
        evaluator = evaluator_of(model, 10, window_batch_size=batch, repeat_first=True)
        losses = evaluate_with_losses(evaluator, ids)["per_token_losses"].tolist()
        expected = one_pass_losses(model, ids[:11])
        for start in (10, 19, 28):
            expected += one_pass_losses(model, torch.cat([ids[:1], ids[start : start + 10]]), 2)
        assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_bos_does_not_change_a_text_read_with_its_state():
    model, ids = make("llama"), random_ids(90)
    losses = [
        evaluate_with_losses(evaluator_of(model, 32, repeat_first=repeats), ids)["loss"]
        for repeats in (False, True)
    ]
    assert losses[0] == losses[1]


def test_window_without_room_for_bos_is_refused():
    with pytest.raises(ValueError, match="chunk_size 10: BOS and an overlap of 9 leave no token"):
        evaluator_of(Stateless(), 10, 9, repeat_first=True)
