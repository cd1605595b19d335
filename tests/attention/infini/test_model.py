"""Generation with Infini-attention: every mode gives the tokens of one pass without a cache."""

import functools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from needlework.attention.infini.cache import InfiniCache
from needlework.attention.infini.segments import end_offset
from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

pytestmark = pytest.mark.slow

NEW_TOKENS = 13


@functools.cache
def stock():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).double().eval()


def infini_model(**parameters):
    torch.manual_seed(1)
    return convert(stock(), Infini(segment_length=6, balance_init_type="randn", **parameters))


def prompts(lengths=(15, 11, 6, 2)):
    """Left-padded ids and mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def generate_uncached(model, ids, alignment):
    """Greedy decoding of one row without generate() or cache: the whole text at each step."""
    length = model.config.infini["segment_length"]
    offset = torch.zeros(1, dtype=torch.long)
    if alignment == "end":
        offset = end_offset(torch.tensor([ids.shape[1]]), length)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(ids, use_cache=False, segment_offset=offset).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[0, -NEW_TOKENS:]


@pytest.mark.parametrize("alignment", ["start", "end"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"update": "linear"},
        {"update": "delta", "balance_act_type": "sigmoid"},
        {"update": "linear", "gate_empty_memory": True, "balance_act_type": "tanh"},
        {"turn_on_memory": False},
    ],
    ids=["linear", "delta", "published", "local"],
)
def test_cached_chunked_and_padded_generation_match_uncached_decoding(alignment, parameters):
    model = infini_model(segment_alignment=alignment, **parameters)
    inputs = prompts()
    expected = torch.stack(
        [
            generate_uncached(model, ids[mask.bool()][None], alignment)
            for ids, mask in zip(*inputs.values(), strict=True)
        ]
    )
    assert len({tuple(row) for row in expected.tolist()}) == len(expected)
    greedy = functools.partial(model.generate, **inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    for mode in ({}, {"use_cache": False}, *({"prefill_chunk_size": n} for n in (1, 4, 6, 7))):
        assert torch.equal(greedy(**mode)[:, 15:], expected), mode


@pytest.mark.parametrize("alignment", ["start", "end"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0},
        {"do_sample": True, "num_beams": 2, "temperature": 2.0},
    ],
    ids=["beams", "beams returned", "samples", "sampled beams"],
)
def test_repeated_and_reordered_rows_keep_their_state(alignment, sampling):
    model = infini_model(segment_alignment=alignment, update="delta")
    generated = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        generated.append(
            model.generate(**prompts(), max_new_tokens=NEW_TOKENS, use_cache=use_cache, **sampling)
        )
    assert torch.equal(*generated)
    if "num_return_sequences" in sampling:
        returned = generated[0].unflatten(0, (4, -1))
        assert not torch.equal(returned[:, 0], returned[:, 1])


def test_second_generation_continues_from_the_cache_of_the_first():
    model = infini_model(update="delta")
    inputs = prompts((15,))
    cache = InfiniCache(model.config)
    first = model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
    longer = torch.cat([first, inputs["input_ids"][:, :7]], dim=1)
    inputs = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    more = functools.partial(model.generate, **inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(more(past_key_values=cache), more())


def test_cache_rows_can_be_selected_repeated_and_reset():
    model = infini_model(segment_alignment="end")
    inputs = prompts((14, 8))
    ids, mask = inputs.values()
    rows = torch.tensor([1, 0, 1])

    def start():
        with torch.no_grad():
            return model(ids[:, :11], attention_mask=mask[:, :11], use_cache=True).past_key_values

    def resume(rows, cache):
        with torch.no_grad():
            return model(ids[rows, 11:], past_key_values=cache, use_cache=True).logits

    expected = resume(torch.tensor([0, 1]), start())
    for change in ("reorder_cache", "batch_select_indices"):
        cache = start()
        getattr(cache, change)(rows)
        torch.testing.assert_close(resume(rows, cache), expected[rows], rtol=1e-9, atol=1e-9)
    cache = start()
    cache.batch_repeat_interleave(2)
    rows = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(resume(rows, cache), expected[rows], rtol=1e-9, atol=1e-9)
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        again = model(ids, attention_mask=mask, past_key_values=cache).logits
        fresh = model(ids, attention_mask=mask, use_cache=True).logits
    assert torch.equal(again, fresh)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cache_implementation": "static"}, "cache_implementation: static cannot be used"),
        ({"prompt_lookup_num_tokens": 2}, "cannot remove tokens from its memory"),
        ({"assistant_model": stock}, "cannot remove tokens from its memory"),
    ],
    ids=["static", "lookup", "assistant"],
)
def test_generation_that_removes_tokens_is_refused(settings, reason):
    settings = {key: value() if callable(value) else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=reason) as caught:
        infini_model().generate(**prompts((9,)), max_new_tokens=9, do_sample=False, **settings)
    assert "\n" not in str(caught.value)
