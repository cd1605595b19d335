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
