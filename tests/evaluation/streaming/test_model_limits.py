import pytest
from support.streamed_models import make
from support.streaming import WINDOW, evaluator_of, random_ids
from transformers import Qwen2Config, Qwen2ForCausalLM

from needlework.attention.layers import full_attention_layers
from needlework.attention.seer.gates import Gates
from needlework.config.attention.seer import Seer
from needlework.evaluation.streaming.model_limits import context_span


def test_systems_that_depend_on_the_length_of_the_text_are_refused(tmp_path):
    model = make("llama")
    Gates.new(model, block_size=16).save(tmp_path)
    for key, kwargs in (
        ("dense_last_rows", {"density": 0.4}),
        ("nz_ratio", {"nz_ratio": 0.3, "dense_last_rows": 0}),
    ):
        system = Seer(gates=str(tmp_path), block_size=16, **kwargs)
        evaluator = evaluator_of(model, 48, attention=system)
        with pytest.raises(
            ValueError, match=f"^seer: {key} depends on the length of the whole text, .* overlap"
        ):
            evaluator.evaluate_streaming(random_ids(301))
    assert evaluator.evaluate_streaming(random_ids(49))["num_chunks"] == 1
    results = evaluator_of(model, 64, 32, attention=system).evaluate_streaming(random_ids(301))
    assert (results["mode"], results["total_tokens"]) == ("strided", 300)


@pytest.mark.parametrize(("name", "positions"), [("gpt2", 1024), ("opt", 2048)])
def test_a_text_beyond_the_position_table_is_refused_before_any_work(name, positions):
    model, ids = make(name), random_ids(positions + 2)
    forwards = []
    model.base_model.register_forward_hook(lambda module, args, out: forwards.append(1))
    evaluator = evaluator_of(model, positions)
    with pytest.raises(
        ValueError, match=f"has {positions} positions, .* to at most {positions + 1}, or"
    ):
        evaluator.evaluate_streaming(ids)
    assert len(forwards) <= 2
    assert evaluator.evaluate_streaming(ids, max_tokens=positions + 1)["total_tokens"] == positions
    with pytest.raises(ValueError, match=f"fewer than chunk_size {positions + 2}; write at most"):
        evaluator_of(model, positions + 2, 5).evaluate_streaming(ids)
    results = evaluator_of(model, positions + 1, positions // 2).evaluate_streaming(ids)
    assert (results["mode"], results["total_tokens"]) == ("strided", positions + 1)


def test_default_chunk_sizes_follow_from_the_model():
    def chunk_size(name, **kwargs):
        return evaluator_of(make(name), **kwargs).plan.chunk_size

    assert chunk_size("infini") == 32
    assert chunk_size("mistral") == 64
    assert chunk_size("llama") == chunk_size("llama", overlap=64) == 4096
    assert chunk_size("llama", attention=WINDOW) == 50
    assert chunk_size("mamba2") == 8192


@pytest.mark.parametrize(("used", "span"), [(True, 8), (False, 0)])
def test_a_sliding_window_that_is_not_used_is_none(used, span):
    config = Qwen2Config(
        **{"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2},
        use_sliding_window=used,
        sliding_window=8,
        max_window_layers=1,
    )
    model = Qwen2ForCausalLM(config)
    assert context_span(model, None) == span
    assert full_attention_layers(model) == ([0] if used else [0, 1])
