import copy
import json

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from needlework.attention.apply import apply
from needlework.config.attention.infini import Infini
from needlework.config.attention.random import Random
from needlework.evaluation.generation.generate import generate_answers
from needlework.models.convert import convert

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(61))]
LAYERS, KV_HEADS, HEAD_SIZE = 3, 2, 8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _llama(eos=2) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        bos_token_id=1,
        eos_token_id=eos,
        pad_token_id=0,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def _samples(lengths: list[int], max_new_tokens: int = 8) -> pl.DataFrame:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for sample, length in enumerate(lengths):
        words = torch.randint(3, len(WORDS), (length,), generator=generator)
        rows.append(
            {
                "task": "key",
                "length": 64,
                "sample": sample,
                "prompt": " ".join(WORDS[i] for i in words),
                "tokens": 1 + length,
                "max_new_tokens": max_new_tokens,
            }
        )
    return pl.DataFrame(rows)


@torch.no_grad()
def _greedy(model, prompt: str, most: int, eos: set[int]) -> list[int]:
    """Greedy decoding without a cache."""
    ids = [1, *(WORDS.index(word) for word in prompt.split())]
    return _greedy_from(model, ids, most, eos)


@torch.no_grad()
def _greedy_from(model, ids: list[int], most: int, eos: set[int]) -> list[int]:
    new = []
    while len(new) < most:
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids.append(token)
        new.append(token)
        if token in eos:
            break
    return new


def _text(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids if i > 2)


def test_answers_equal_greedy_decoding_without_a_cache(tokenizer):
    model, samples = _llama(), _samples([5, 20, 41, 20, 7])
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense")
    for row, prompt in zip(predictions.iter_rows(named=True), samples["prompt"], strict=True):
        new = _greedy(model, prompt, 8, {2})
        assert row["prediction"] == _text(new)
        assert row["new_tokens"] == len(new)
    assert predictions["prediction"].n_unique() > 1


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_at_eos_or_max_new_tokens(tokenizer, as_list):
    samples = _samples([9, 30])
    free = [_greedy(_llama(), prompt, 8, set()) for prompt in samples["prompt"]]
    # A token of the first answer that the second does not contain.
    eos = next(token for token in free[0][1:] if token not in free[1])
    model = _llama([2, eos] if as_list else eos)
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense")

    cut = free[0][: free[0].index(eos) + 1]
    assert predictions["stop_reason"].to_list() == ["eos", "length"]
    assert predictions["new_tokens"].to_list() == [len(cut), 8]
    assert predictions["prediction"].to_list() == [_text(cut), _text(free[1])]


def test_the_last_token_may_be_eos(tokenizer):
    samples = _samples([9], max_new_tokens=3)
    third = _greedy(_llama(), samples["prompt"][0], 3, set())
    assert third.index(third[2]) == 2
    predictions, *_ = generate_answers(_llama(third[2]), tokenizer, samples, system="dense")
    assert predictions.select("new_tokens", "stop_reason").row(0) == (3, "eos")


@pytest.mark.parametrize("none", [None, []])
def test_a_model_without_eos_takes_the_tokenizers(tokenizer, none):
    samples = _samples([9, 30])
    free = [_greedy(_llama(), prompt, 8, set()) for prompt in samples["prompt"]]
    eos = next(token for token in free[0][1:] if token not in free[1])
    model = _llama()
    model.generation_config.eos_token_id = none
    ending, endless = (
        PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=end)
        for end in (WORDS[eos], None)
    )
    predictions, *_ = generate_answers(model, ending, samples, system="dense")
    assert predictions["stop_reason"].to_list() == ["eos", "length"]
    assert predictions["new_tokens"].to_list() == [free[0].index(eos) + 1, 8]
    predictions, *_ = generate_answers(model, endless, samples, system="dense")
    assert predictions["stop_reason"].to_list() == ["length", "length"]
    assert predictions["prediction"].to_list() == [_text(new) for new in free]


def test_generation_settings_of_a_checkpoint_are_ignored_and_restored(tokenizer):
    samples, model = _samples([5, 20, 41]), _llama()
    plain, *_ = generate_answers(model, tokenizer, samples, system="dense")
    own = model.generation_config
    own.do_sample, own.temperature, own.top_k, own.max_length = True, 5.0, 3, 4
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 9.0, 1, 6
    own.suppress_tokens = list(range(3, 40))
    before = own.to_dict()
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense")
    assert predictions.equals(plain)
    assert model.generation_config is own
    assert own.to_dict() == before


def test_another_tokenizer_than_that_of_the_samples_is_an_error(tokenizer):
    samples = _samples([5, 20, 7]).with_columns(tokens=pl.Series([6, 20, 8]))
    with pytest.raises(
        ValueError, match=r"^sample 1 of task key at 64: .* 21 prompt tokens.* 20; make"
    ):
        generate_answers(_llama(), tokenizer, samples, system="dense")


def test_the_cache_holds_prompt_and_answer_without_its_last_token(tokenizer):
    samples = _samples([5, 40])
    predictions, *_ = generate_answers(_llama(), tokenizer, samples, system="dense")
    for row, words in zip(predictions.iter_rows(named=True), [5, 40], strict=True):
        tokens = 1 + words + row["new_tokens"] - 1
        assert row["cache_bytes"] == 2 * LAYERS * KV_HEADS * HEAD_SIZE * 4 * tokens


def test_tables_have_one_row_per_sample_in_order(tokenizer):
    samples = _samples([6, 5, 4]).with_columns(sample=pl.Series([7, 3, 5]))
    predictions, measurements, densities = generate_answers(
        _llama(), tokenizer, samples, system="dense"
    )
    key = {"system": ["dense"] * 3, "task": ["key"] * 3, "length": [64] * 3, "sample": [7, 3, 5]}
    for table in (predictions, measurements):
        assert table.select(list(key)).to_dict(as_series=False) == key
    assert predictions.columns[4:] == [
        *("prediction", "new_tokens", "stop_reason", "prefill_density", "decode_density"),
        *("sparse_layers_prefill_density", "sparse_layers_decode_density", "cache_bytes"),
    ]
    assert measurements.columns[4:] == [
        *("prefill_seconds", "decode_seconds", "peak_memory_bytes", "peak_resident_bytes"),
        *("memory", "measured_at", "device"),
    ]
    assert densities.columns == [
        *("system", "task", "length", "layer", "stage", "is_sparse"),
        *("density", "pairs"),
    ]
    assert densities.is_empty()  # the model's own attention is not measured
    assert measurements["prefill_seconds"].min() > 0
    assert measurements["peak_memory_bytes"].min() > 0
    for row in measurements.iter_rows(named=True):
        seconds = [point["seconds"] for point in row["memory"]]
        assert seconds[-1] >= row["prefill_seconds"] + row["decode_seconds"]
        assert row["peak_resident_bytes"] == max(p["resident_bytes"] for p in row["memory"]) > 0
    assert predictions["prefill_density"].to_list() == [1.0] * 3
    assert predictions["decode_density"].to_list() == [1.0] * 3
    assert predictions["sparse_layers_prefill_density"].null_count() == 3
    assert predictions["sparse_layers_decode_density"].null_count() == 3


def test_a_system_is_applied_measured_per_sample_and_removed(tokenizer):
    model, samples = _llama(), _samples([60, 20, 60])
    stock = model.config._attn_implementation
    system = Random(block_size=4, density=0.25, dense_layers=1)
    predictions, *_ = generate_answers(model, tokenizer, samples, system="random", attention=system)

    assert model.config._attn_implementation == stock
    alone = []
    for i in range(3):
        table, *_ = generate_answers(
            model, tokenizer, samples[i : i + 1], system="random", attention=system
        )
        alone.append(table)
    # No state carries over from one sample to the next.
    assert predictions.equals(pl.concat(alone))
    for row, prompt in zip(predictions.iter_rows(named=True), samples["prompt"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        with apply(model, system) as handle, torch.inference_mode():
            model.generate(**ids, max_new_tokens=8, do_sample=False)
            measured = handle.density()
        assert row["prefill_density"] == measured.prefill < 1
        assert row["decode_density"] == measured.decode < 1
        assert row["sparse_layers_prefill_density"] == measured.sparse_layers_prefill
        assert row["sparse_layers_decode_density"] == measured.sparse_layers_decode
    dense, *_ = generate_answers(model, tokenizer, samples, system="dense")
    assert dense["prediction"].to_list() != predictions["prediction"].to_list()


def test_layer_densities_count_the_pairs_of_every_sample(tokenizer):
    model, words = _llama(), [60, 20, 41]
    system = Random(block_size=4, top_k_blocks=3, dense_layers=1)
    predictions, _, densities = generate_answers(
        model, tokenizer, _samples(words), system="random", attention=system
    )
    new = predictions["new_tokens"].to_list()
    rows = densities.to_dicts()
    assert [(row["layer"], row["stage"]) for row in rows] == [
        (layer, stage) for layer in range(3) for stage in ("prefill", "decode")
    ]
    assert [row["is_sparse"] for row in rows] == [False] * 2 + [True] * 4
    for row in rows:
        assert (row["system"], row["task"], row["length"]) == ("random", "key", 64)
        kept = pairs = 0
        for count, answer in zip(words, new, strict=True):
            prompt = 1 + count
            # The model does not read the last token of an answer.
            queries = {"prefill": range(prompt), "decode": range(prompt, prompt + answer - 1)}
            for t in queries[row["stage"]]:
                # Three blocks of four: the query's own, up to it, and two full ones before.
                kept += min(t // 4, 2) * 4 + t % 4 + 1 if row["is_sparse"] else t + 1
                pairs += t + 1
        assert row["pairs"] == pairs
        assert row["density"] == kept / pairs


def test_densities_are_separate_for_tasks_and_lengths(tokenizer):
    model, samples = _llama(), _samples([60, 20, 41])
    samples = samples.with_columns(length=pl.Series([64, 32, 64]))
    system = Random(block_size=4, density=0.25, dense_layers=1)
    *_, densities = generate_answers(model, tokenizer, samples, system="random", attention=system)
    for length in (32, 64):
        part = samples.filter(pl.col("length") == length)
        *_, alone = generate_answers(model, tokenizer, part, system="random", attention=system)
        assert densities.filter(pl.col("length") == length).equals(alone)


def test_an_answer_of_one_token_has_no_decode_density(tokenizer):
    system = Random(block_size=4, density=0.25, dense_layers=1)
    samples = _samples([30], max_new_tokens=1)
    predictions, _, densities = generate_answers(
        _llama(), tokenizer, samples, system="random", attention=system
    )
    assert predictions.select("new_tokens", "decode_density").row(0) == (1, None)
    assert densities["stage"].to_list() == ["prefill"] * 3


def test_the_cache_of_infini_attention_has_constant_size(tokenizer):
    system = Infini(segment_length=8)
    model = convert(_llama(), system).eval()
    samples = _samples([12, 30, 61], max_new_tokens=6)
    predictions, *_ = generate_answers(model, tokenizer, samples, system="infini")
    # Per layer: keys and values of a segment; per kv head, a memory [d, d] and a norm [d].
    local = 2 * KV_HEADS * 8 * HEAD_SIZE
    memory = KV_HEADS * HEAD_SIZE * (HEAD_SIZE + 1)
    sizes = predictions["cache_bytes"].unique().to_list()
    assert len(sizes) == 1
    assert sizes[0] >= LAYERS * (local + memory) * 4


def test_an_appended_token_does_not_end_the_prompt(tokenizer):
    samples, model = _samples([6, 9]), _llama()
    expected = generate_answers(model, tokenizer, samples, system="own")[0]
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    appending = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert generate_answers(model, appending, samples, system="own")[0].equals(expected)


def test_the_eos_of_config_and_tokenizer_end_an_answer(tokenizer):
    model, samples = _llama(eos=2), _samples([6])
    words = generate_answers(model, tokenizer, samples, system="own")[0]["prediction"][0].split()
    own = copy.deepcopy(tokenizer)
    own.eos_token = words[2]
    answer = generate_answers(model, own, samples, system="own")[0].row(0, named=True)
    assert (answer["stop_reason"], answer["new_tokens"]) == ("eos", words.index(words[2]) + 1)


def test_special_tokens_of_the_text_are_not_those_of_the_template(tokenizer):
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["unk_token"] = "w9"
    words = Tokenizer.from_str(json.dumps(state))
    other = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    prompt, model = "</s> w1 w2 </s> w3", _llama()
    row = {"task": "key", "length": 64, "sample": 0, "prompt": prompt, "max_new_tokens": 6}
    samples = pl.DataFrame([{**row, "tokens": 6, "control_spans": [[0, 4]]}])
    answer = generate_answers(model, other, samples, system="own")[0]["prediction"][0]
    ids = [1, 2, WORDS.index("w1"), WORDS.index("w2"), WORDS.index("w9"), WORDS.index("w3")]
    expected = _greedy_from(model, ids, 6, {2})
    assert answer.split() == [WORDS[i] for i in expected if i > 2]
