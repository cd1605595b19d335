import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import transformers as configs
from support.batch_changes import assert_state_follows, every_batch_change
from support.tiny_models import FAMILIES, SMALL, generate, prompts, run, tiny
from transformers import AutoModel, DynamicCache

from needlework.attention.apply import apply
from needlework.attention.cache_state import MethodState
from needlework.attention.kernels.choice import VARIABLE
from needlework.config.attention.infini import Infini
from needlework.config.attention.oracle import Oracle
from needlework.config.attention.random import Random
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.window import Window
from needlework.config.attention.xattention import XAttention

pytestmark = pytest.mark.slow

SYSTEMS = {
    "sketchwalk-mean": SketchWalk(block_size=8, density=0.5, dense_layers=1),
    "sketchwalk-sum": SketchWalk(block_size=8, density=0.5, dense_layers=1, heads="sum"),
    "random": Random(block_size=8, density=0.5, dense_layers=1),
}
BY_COUNT = list(SYSTEMS)
"""Systems whose rows keep exactly the number of blocks that `density` sets."""
SYSTEMS |= {
    "sketchwalk-official": SketchWalk(block_size=8, preset="official", dense_layers=1),
    "sketchwalk-box": SketchWalk(preset="box", block_size=8, density=0.5, dense_layers=1),
    "sketchwalk-kept": SketchWalk(block_size=8, density=0.5, dense_layers=1, walk_memory="sparse"),
    "oracle": Oracle(block_size=8, density=0.5, dense_layers=1),
    "xattention": XAttention(block_size=8, stride=4, density=0.5, dense_layers=1),
    "xattention-threshold": XAttention(block_size=8, stride=4, threshold=0.6, dense_layers=1),
    "window": Window(block_size=8, sink_tokens=4, recent_tokens=20, dense_layers=1),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


@pytest.fixture(scope="module")
def llama():
    return tiny()


@pytest.fixture(scope="module")
def llama_of_16():
    """Head dimension 16, the smallest that compiles."""
    return tiny(differing={"hidden_size": 64, "head_dim": 16})


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_blocks_equals_stock_attention(family):
    model, inputs = tiny(family), prompts([67, 50])
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        stock = model(**inputs).logits
    stock_tokens, stock_logits = generate(model, inputs)
    whole = SketchWalk(block_size=8, top_k_blocks=99, dense_layers=1)
    with apply(model, whole) as handle:
        assert handle.sparse_layers == FAMILIES[family][2]
        with torch.inference_mode():
            result = model(**inputs).logits
        tokens, logits = generate(model, inputs)
        assert handle.density().prefill == handle.density().decode == 1
        chunked = run(model, inputs["input_ids"], [32, 16, 19], inputs["attention_mask"])
    torch.testing.assert_close(result[real], stock[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(chunked[real], stock[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, stock_logits, rtol=0, atol=1e-5)
    assert torch.equal(tokens, stock_tokens)
    # Check that attention matters in this model at all.
    few = Random(block_size=8, top_k_blocks=1, dense_layers=1)
    with apply(model, few), torch.inference_mode():
        less = model(**inputs).logits
    assert (less - stock)[real].abs().max() > 1e-3


def test_compiled_prefill_equals_stock_attention(llama_of_16, monkeypatch):
    model, inputs = llama_of_16, prompts([160, 120])
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        stock = model(**inputs).logits
    monkeypatch.setattr("needlework.attention.kernels.attend.COMPILE_THRESHOLD", 0)
    monkeypatch.setenv(VARIABLE, "compiled")
    with apply(model, SketchWalk(block_size=16, top_k_blocks=99, dense_layers=1)) as handle:
        with torch.inference_mode():
            result = model(**inputs).logits
        assert handle.density().prefill == 1
    torch.testing.assert_close(result[real], stock[real], rtol=0, atol=1e-5)


@every_system
def test_skipped_blocks_change_logits_and_removal_restores_them(llama, system):
    inputs = prompts([67, 50])
    stock, before = llama(**inputs).logits, copy.deepcopy(llama.config)
    with apply(llama, system):
        changed = llama(**inputs).logits
    assert (changed - stock).abs().max() > 1e-2
    assert torch.equal(llama(**inputs).logits, stock)
    assert llama.config.to_dict() == before.to_dict()
    assert llama.config._attn_implementation == before._attn_implementation
    assert not llama.model._forward_pre_hooks


@every_system
def test_chunks_of_whole_blocks_equal_one_pass(llama, system):
    ids = prompts([75])["input_ids"]
    with apply(llama, system) as handle:
        whole = run(llama, ids, [64, *[1] * 11])
        density = handle.density()
        handle.reset()
        handle.prompt_tokens = 64
        chunked = run(llama, ids, [8, 40, 16, *[1] * 11])
        assert handle.density() == density
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


@every_system
def test_last_one_token_chunk_is_prefill_if_the_length_is_set(llama, system):
    ids, result = prompts([65])["input_ids"], []
    with apply(llama, system) as handle:
        for chunks in ([65], [64, 1]):
            handle.reset()
            handle.prompt_tokens = 65
            result.append((run(llama, ids, chunks), handle.density()))
            assert handle.prompt_tokens == 0
        run(llama, ids, [64, 1])
        assert handle.density().decode is not None
    (whole, density), (chunked, same) = result
    assert density == same
    assert density.decode is None
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


@every_system
def test_right_padding_has_no_effect(llama, system):
    inputs = prompts([67, 50])
    ids, mask = (torch.stack([x[0], x[1].roll(50)]) for x in inputs.values())
    with apply(llama, system), torch.inference_mode():
        result = llama(input_ids=ids, attention_mask=mask).logits
        for row, length in enumerate([67, 50]):
            alone = llama(input_ids=ids[row : row + 1, :length]).logits
            torch.testing.assert_close(result[row, :length], alone[0], rtol=0, atol=1e-4)


@every_system
def test_padded_batch_equals_its_rows_alone(llama, system):
    """Generation crosses a block boundary in every row."""
    lengths = [67, 50, 41]
    inputs = prompts(lengths)
    with apply(llama, system):
        tokens, logits = generate(llama, inputs)
        for row, length in enumerate(lengths):
            alone = {name: x[row : row + 1, -length:] for name, x in inputs.items()}
            its_tokens, its_logits = generate(llama, alone)
            assert torch.equal(its_tokens[0], tokens[row])
            torch.testing.assert_close(its_logits[0], logits[row], rtol=0, atol=1e-4)


@every_system
def test_later_blocks_do_not_affect_earlier_rows(llama, system):
    ids = prompts([80])["input_ids"]
    other = ids.clone()
    other[:, 48:] = prompts([80], seed=1)["input_ids"][:, 48:]
    with apply(llama, system), torch.inference_mode():
        result, changed = llama(input_ids=ids).logits, llama(input_ids=other).logits
    torch.testing.assert_close(changed[:, :48], result[:, :48], rtol=0, atol=1e-5)
    assert not torch.allclose(changed[:, 48:], result[:, 48:])


@pytest.mark.parametrize("name", ["dense", "random", "window"])
def test_later_tokens_do_not_affect_earlier_ones_without_pooling(llama, name):
    """If the choice of blocks does not depend on tokens, no later token has an effect."""
    ids = prompts([80])["input_ids"]
    other = ids.clone()
    other[:, 53:] = prompts([80], seed=1)["input_ids"][:, 53:]
    on = nullcontext() if name == "dense" else apply(llama, SYSTEMS[name])
    with on, torch.inference_mode():
        result, changed = llama(input_ids=ids).logits, llama(input_ids=other).logits
    torch.testing.assert_close(changed[:, :53], result[:, :53], rtol=0, atol=1e-5)
    assert not torch.allclose(changed[:, 53:], result[:, 53:])


@pytest.mark.parametrize("name", BY_COUNT)
def test_density_counts_attended_pairs(llama, name):
    """Blocks of 8, 64 tokens: row i keeps ceil((i + 1) / 2) blocks, half of its own."""
    with apply(llama, SYSTEMS[name]) as handle:
        assert handle.density().sparse_layers_prefill is None
        run(llama, prompts([64])["input_ids"], [64])
        kept = sum((-(-(i + 1) // 2) - 1) * 64 + 36 for i in range(8))
        assert handle.density().sparse_layers_prefill == kept / (64 * 65 / 2)
        assert handle.density().sparse_layers_decode is None
        handle.reset()
        cache = DynamicCache(config=llama.config)
        run(llama, prompts([70])["input_ids"], [64, *[1] * 6], cache=cache)
        # The last of 9 blocks keeps five; its own holds 1 to 6 tokens.
        assert handle.density().sparse_layers_decode == sum(4 * 8 + t for t in range(1, 7)) / sum(
            range(65, 71)
        )
        assert handle.density().sparse_layers_prefill == kept / (64 * 65 / 2)


def test_stages_prefill_is_sparse_prefill_and_stock_decode(llama):
    system = SYSTEMS["sketchwalk-sum"].model_copy(update={"stages": "prefill"})
    ids = prompts([70])["input_ids"]
    cache = DynamicCache(config=llama.config)
    with apply(llama, system) as handle:
        run(llama, ids[:, :64], [64], cache=cache)
        stock_cache = copy.deepcopy(cache)
        sparse = run(llama, ids[:, 64:], [1] * 6, cache=cache)
        (state,) = (layer for layer in cache.layers if isinstance(layer, MethodState))
        # What decoded in the ninth block is there for a prompt that continues it.
        assert state.tensors[1]["keys"].shape[2] == 9
        assert handle.density().sparse_layers_decode == 1
        assert handle.density().sparse_layers_prefill < 0.6
    stock = run(llama, ids[:, 64:], [1] * 6, cache=stock_cache)
    assert torch.equal(sparse, stock)


@every_system
@every_batch_change
def test_state_follows_batch_changes_of_the_cache(llama, system, change, rows):
    assert_state_follows(llama, system, change, rows)


@every_system
def test_cropped_tokens_have_no_effect(llama, system):
    ids, wrong = prompts([75])["input_ids"], prompts([75], seed=1)["input_ids"]
    cache = DynamicCache(config=llama.config)
    with apply(llama, system):
        whole = run(llama, ids, [66, *[1] * 9])
        run(llama, ids[:, :66], [66], cache=cache)
        run(llama, wrong[:, 66:70], [1] * 4, cache=cache)
        cache.crop(-4)
        result = run(llama, ids[:, 66:], [1] * 9, cache=cache)
    torch.testing.assert_close(result, whole[:, 66:], rtol=0, atol=1e-4)


def test_crop_through_a_full_block_is_refused(llama):
    cache = DynamicCache(config=llama.config)
    with apply(llama, SYSTEMS["sketchwalk-mean"]):
        run(llama, prompts([66])["input_ids"], [66], cache=cache)
        with pytest.raises(ValueError, match="crop to the boundary of a block"):
            cache.crop(-4)


@every_system
def test_cache_can_be_reused_after_reset(llama, system):
    ids = prompts([70])["input_ids"]
    cache = DynamicCache(config=llama.config)
    with apply(llama, system):
        first = run(llama, ids, [64, *[1] * 6], cache=cache)
        cache.reset()
        assert torch.equal(run(llama, ids, [64, *[1] * 6], cache=cache), first)


def test_generation_continues_with_a_returned_cache(llama):
    ids = prompts([70])["input_ids"]
    with apply(llama, SYSTEMS["sketchwalk-sum"]), torch.inference_mode():
        whole = run(llama, ids, [69, 1])
        cache = llama(input_ids=ids[:, :69]).past_key_values
        last = llama(input_ids=ids[:, 69:], past_key_values=cache).logits
        without = llama(input_ids=ids[:, :69], use_cache=False).logits
    torch.testing.assert_close(last, whole[:, 69:], rtol=0, atol=1e-5)
    torch.testing.assert_close(without, whole[:, :69], rtol=0, atol=1e-5)


def test_arguments_of_the_base_model_may_have_no_names(llama):
    ids, cache = prompts([70])["input_ids"], DynamicCache(config=llama.config)
    with apply(llama, SYSTEMS["sketchwalk-sum"]), torch.inference_mode():
        whole = llama.model(ids).last_hidden_state
        parts = [llama.model(part, None, None, cache)[0] for part in ids.split([64, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_another_attention_implementation_under_a_system_is_refused(llama):
    stock = llama.config._attn_implementation
    with apply(llama, SYSTEMS["random"]):
        llama.set_attn_implementation("eager")
        with pytest.raises(ValueError, match=r"set_attn_implementation\('eager'\) replaced"):
            llama(**prompts([20]))
    assert llama.config._attn_implementation == stock


def test_misuse_raises_with_a_remedy(llama):
    system, ids = SYSTEMS["random"], prompts([20])["input_ids"]
    with pytest.raises(ValueError, match="write it as `attention` of a model"):
        apply(llama, Infini())
    with pytest.raises(ValueError, match="dense_layers 4 leaves none of the model's 4"):
        apply(llama, system.model_copy(update={"dense_layers": 4}))
    cache = llama(input_ids=ids).past_key_values
    with apply(llama, system) as handle:
        with pytest.raises(ValueError, match="remove"):
            apply(llama, system)
        with pytest.raises(ValueError, match="start with an empty cache"):
            llama(input_ids=ids, past_key_values=cache)
        with pytest.raises(
            ValueError, match="attention_mask: has 3 rows, but the input has 1; pass"
        ):
            llama(input_ids=ids, attention_mask=torch.ones(3, 20).long())
        with pytest.raises(ValueError, match="ready-made mask"):
            llama(input_ids=ids, attention_mask=torch.ones(1, 1, 20, 20).bool())
        handle.remove()
        handle.remove()
    apply(llama, system).remove()


ENCODER = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}
REFUSED = {
    "mamba": (configs.MambaConfig(**SMALL), "mamba has no layer with causal attention"),
    "sliding": (configs.MistralConfig(**SMALL), "mistral has no layer with causal attention over"),
    "encoder": (configs.BertConfig(**ENCODER), "bert has no layer with causal attention"),
    "encoder-decoder": (
        configs.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4),
        "t5 has an encoder; choose a decoder-only model",
    ),
    "own attention code": (
        configs.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        "bloom computes attention in its own code; choose",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_full_attention_are_refused(name):
    config, message = REFUSED[name]
    model = AutoModel.from_config(config)
    with pytest.raises(ValueError, match=message) as error:
        apply(model, SYSTEMS["random"])
    assert "\n" not in str(error.value)
    assert model.config._attn_implementation != "needlework"


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match="model: is a Linear; pass a model loaded by AutoModel"):
        apply(torch.nn.Linear(2, 2), SYSTEMS["random"])


def test_empty_blocks_are_refused():
    with pytest.raises(ValueError, match=r"block_size\n.* greater than or equal to 1"):
        SketchWalk(block_size=0)


def test_models_that_bypass_the_attention_interface_are_refused(llama, monkeypatch):
    """As in a family that declares the interface but computes attention elsewhere."""

    def elsewhere(self, hidden_states, **_):
        return hidden_states, None

    monkeypatch.setattr(type(llama.model.layers[0].self_attn), "forward", elsewhere)
    with (
        apply(llama, SYSTEMS["random"]),
        pytest.raises(ValueError, match="llama computes attention in"),
    ):
        llama(**prompts([20]))
    monkeypatch.undo()
    assert not llama.model._forward_hooks


def test_attention_with_unsupported_arguments_is_refused(llama, monkeypatch):
    attention = llama.model.layers[1].self_attn
    monkeypatch.setattr(
        attention, "forward", partial(attention.forward, position_bias=torch.zeros(1))
    )
    with apply(llama, SYSTEMS["random"]), pytest.raises(ValueError, match="uses position_bias"):
        llama(**prompts([20]))


@every_system
def test_bfloat16_models_generate(system):
    """With Qwen3."""
    model, inputs = tiny("qwen3").to(torch.bfloat16), prompts([67, 50])
    _, stock = generate(model, inputs)
    with apply(model, system) as handle:
        tokens, logits = generate(model, inputs)
        assert 0 < handle.density().decode < 1
    assert tokens.shape == (2, 12)
    assert logits.isfinite().all()
    assert (logits - stock).abs().max() > 1e-2
