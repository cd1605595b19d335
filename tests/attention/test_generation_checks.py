"""Calls whose tokens come in an order that a choice of blocks does not allow."""

import pytest
import torch
from support.tiny_models import prompts, run, tiny

from needlework.attention.apply import apply
from needlework.config.attention.random import Random
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.window import Window
from needlework.config.attention.xattention import XAttention

RANDOM = Random(block_size=8, density=0.4, dense_layers=1)
WINDOW = Window(block_size=8, dense_layers=1, recent_tokens=20)


@pytest.fixture(scope="module")
def llama():
    return tiny()


def generate(model, inputs=None, **options):
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, **options}
    inputs = prompts([61]) if inputs is None else inputs
    done = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return done.sequences, torch.stack(done.logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", [RANDOM, SketchWalk(block_size=8, dense_layers=1), XAttention(block_size=8)]
)
@pytest.mark.parametrize("kind", ["lookup", "assistant"])
def test_speculative_decoding_is_refused(llama, system, kind):
    options = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": tiny()}
    with (
        apply(llama, system),
        pytest.raises(ValueError, match=rf"{system.type}: speculative decoding .* remove"),
    ):
        generate(llama, **options)
    generate(llama, **options)  # the model's own attention allows it again


def test_speculative_decoding_keeps_the_tokens_of_a_window(llama):
    repeating = {name: x.repeat(1, 3) for name, x in prompts([20]).items()}
    with apply(llama, WINDOW):
        expected, _ = generate(llama, repeating)
        found, _ = generate(llama, repeating, prompt_lookup_num_tokens=3)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "system",
    [RANDOM, SketchWalk(block_size=8, dense_layers=1, preset="official"), WINDOW],
    ids=lambda system: system.type,
)
def test_prefill_in_chunks_of_whole_blocks_equals_one_pass(llama, system):
    with apply(llama, system) as handle:
        tokens, logits = generate(llama)
        chunked_tokens, chunked = generate(llama, prefill_chunk_size=16)
        assert handle.prompt_tokens == 0
    assert (chunked - logits).abs().max() <= 1e-5
    assert chunked_tokens.tolist() == tokens.tolist()


@pytest.mark.slow
def test_prefill_in_chunks_that_cut_blocks_is_refused(llama):
    with apply(llama, RANDOM):
        with pytest.raises(ValueError, match=r"prefill_chunk_size: 13 .* such as 16"):
            generate(llama, prefill_chunk_size=13)
        with pytest.raises(ValueError, match="begin after the padding; pad rows by multiples of 8"):
            generate(llama, prompts([61, 50]), prefill_chunk_size=16)
        generate(llama, prompts([61, 45]), prefill_chunk_size=16)
    with apply(llama, WINDOW):
        _, logits = generate(llama)
        _, chunked = generate(llama, prefill_chunk_size=13)
    assert (chunked - logits).abs().max() <= 1e-5


def test_a_continued_prompt_in_chunks_that_cut_blocks_is_refused(llama):
    with apply(llama, RANDOM), torch.inference_mode():
        cache = llama(input_ids=prompts([13])["input_ids"]).past_key_values
        with pytest.raises(ValueError, match="end at token 29 of the prompt's 61, within a block"):
            generate(llama, past_key_values=cache, prefill_chunk_size=16)


@pytest.mark.parametrize("lengths", [[70], [70, 51]])
def test_forwards_that_cut_blocks_of_a_known_prompt_are_refused(llama, lengths):
    inputs = prompts(lengths)
    ids, mask = inputs.values()
    with apply(llama, RANDOM) as handle:
        handle.prompt_tokens = 70
        with pytest.raises(ValueError, match=r"^input_ids: end at token .* within a block of 8;"):
            run(llama, ids, [48, 13, 9] if len(ids) == 1 else [48, 22], mask)
        with pytest.raises(ValueError, match="within a block of 8"), torch.inference_mode():
            llama(inputs_embeds=llama.get_input_embeddings()(ids[:1, :13]))
    with apply(llama, WINDOW) as handle:
        whole = run(llama, ids, [70], mask)
        handle.prompt_tokens = 70
        chunked = run(llama, ids, [48, 13, 9], mask)
    assert (chunked - whole)[mask.bool()].abs().max() <= 1e-5


def test_several_texts_in_one_row_are_refused(llama):
    ids = prompts([20])["input_ids"]
    packed = torch.cat([torch.arange(12), torch.arange(8)])[None]
    with apply(llama, RANDOM):
        with pytest.raises(ValueError, match="position_ids: has several texts in one row"):
            llama(input_ids=ids, position_ids=packed, use_cache=False)
        with pytest.raises(ValueError, match="cu_seq_lens_q: has several texts"):
            llama(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 12, 20]))
        with pytest.raises(ValueError, match="position_ids: has several texts"):
            llama.model(ids, None, packed)
        llama(input_ids=ids, position_ids=torch.arange(20)[None], use_cache=False)
    llama(input_ids=ids, position_ids=packed, use_cache=False)
