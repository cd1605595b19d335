import numpy as np
import pytest
import torch
from support.streamed_models import Recurrent, make
from support.streaming import (
    WINDOW,
    evaluate_with_losses,
    evaluator_of,
    one_pass_losses,
    random_ids,
)

from needlework.attention.apply import apply
from needlework.evaluation.streaming.accumulator import Accumulator

pytestmark = pytest.mark.slow


def test_infini_segments_align_to_the_start_of_the_text():
    ids = random_ids(150)
    model = make("infini")
    expected = one_pass_losses(model, ids)
    model.config.infini["segment_alignment"] = "end"
    assert one_pass_losses(model, ids) != pytest.approx(expected, abs=1e-3)
    for chunk in (7, 50):
        results = evaluate_with_losses(evaluator_of(model, chunk), ids)
        assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 50, 128])
def test_the_window_system_is_exact_in_constant_memory(chunk):
    model, ids = make("llama"), random_ids(301)
    with apply(model, WINDOW):
        expected = one_pass_losses(model, ids)
    assert np.abs(np.array(expected) - one_pass_losses(model, ids)).max() > 0.1
    evaluator, accumulator = evaluator_of(model, chunk, attention=WINDOW), Accumulator()
    losses = torch.cat([one.losses for one in evaluator.chunks(ids, accumulator=accumulator)])
    assert evaluator.run.mode == "state"
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # Keys and values of 3 sinks and 49 recent tokens, in 3 layers with 2 heads of 8.
    full = accumulator["first_token"] + accumulator["tokens"] > 53
    assert set(accumulator["state_bytes"][full].tolist()) == {2 * 3 * 2 * 8 * 4 * 52}
    assert model.config._attn_implementation != "needlework"


def test_the_window_system_with_dense_layers_keeps_all_keys():
    model, ids = make("llama"), random_ids(301)
    system = WINDOW.model_copy(update={"dense_layers": 1})
    with apply(model, system):
        expected = one_pass_losses(model, ids)
    results = evaluate_with_losses(evaluator_of(model, 64, attention=system), ids)
    assert results["mode"] == "cache"
    assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_module_carries_its_own_state():
    model, ids = Recurrent(), random_ids(301)
    expected = one_pass_losses(model, ids)
    for chunk in (1, 7, 128):
        results = evaluate_with_losses(evaluator_of(model, chunk), ids)
        assert results["mode"] == "state"
        assert results["per_token_losses"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert results["chunk_size"] == 128
    assert evaluator_of(model).plan.chunk_size == 8192
