from types import SimpleNamespace

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StoppingCriteriaList

from needlework.evaluation.meter import FirstTokenClock, cache_bytes


def _llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 48,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "eos_token_id": None,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval()


def _cache(model: LlamaForCausalLM, tokens: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(1, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    return cache


def test_cache_bytes_follow_from_shapes():
    # 2 (key, value) x layers x kv heads x tokens x head size x bytes of a float32
    assert cache_bytes(_cache(_llama(), 10)) == 2 * 3 * 2 * 10 * 8 * 4
    assert cache_bytes(_cache(_llama(), 80)) == 8 * cache_bytes(_cache(_llama(), 10))
    half = _llama(num_key_value_heads=6).to(torch.bfloat16)
    assert cache_bytes(_cache(half, 7)) == 2 * 3 * 6 * 7 * 8 * 2


def test_cache_bytes_count_each_storage_once():
    memory = torch.zeros(4, 8)
    shared = SimpleNamespace(whole=memory, view=memory[1], again=[memory, {"key": memory.T}])
    assert cache_bytes(shared) == 4 * 8 * 4
    # A view keeps its whole storage.
    assert cache_bytes([torch.zeros(100, dtype=torch.float64)[:3]]) == 800
    assert cache_bytes((torch.zeros(2), {"a": [torch.zeros(3, dtype=torch.int8)]}, None)) == 11


def test_cache_bytes_skip_modules_and_reference_cycles():
    cache = SimpleNamespace(state=torch.zeros(5), model=torch.nn.Linear(3, 3), numbers=[1, "two"])
    cache.own = cache
    assert cache_bytes(cache) == 20
    assert cache_bytes(None) == 0


def test_the_clock_splits_a_generation_without_stopping_it():
    model, clock = _llama(), FirstTokenClock()
    seen = []

    class Watch(FirstTokenClock):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(clock.seconds()[0])
            return super().__call__(input_ids, scores, **kwargs)

    out = model.generate(
        torch.ones(2, 5, dtype=torch.long),
        max_new_tokens=4,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([clock, Watch()]),
    )
    prefill, decode = clock.seconds()
    assert out.shape == (2, 9)
    assert len(seen) == 4
    # Prefill is fixed at the first token; decode continues.
    assert seen == [prefill] * 4
    assert prefill > 0
    assert clock.seconds()[1] > decode > 0
