"""Thinking budgets in generation by small models with random or hand-set weights."""

from itertools import pairwise

import polars as pl
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from needlework.evaluation.generation.generate import generate_answers
from needlework.evaluation.generation.thinking_budget import ThinkingBudget
from needlework.reasoning.formats import opens_reasoning

pytestmark = pytest.mark.slow

ENDING = "\n</think>\n\n"


def _tokenizer(tags: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes; reasoning tags are one token each (plain or special), or bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    if tags != "bytes":
        special = tags == "special"
        added = [AddedToken(tag, special=special) for tag in ("<think>", "</think>")]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


@pytest.fixture(scope="module", params=["plain", "special", "bytes"])
def tokenizer(request) -> PreTrainedTokenizerFast:
    return _tokenizer(request.param)


def _random_model() -> Qwen3ForCausalLM:
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=262,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=257,
    )
    return Qwen3ForCausalLM(config).eval()


@torch.no_grad()
def _reciter(tokenizer: PreTrainedTokenizerFast, *lines: str) -> Qwen3ForCausalLM:
    """A model that continues any token of a line with the rest of the line, and then with "~".

    No token occurs twice in the lines, which have at most 31 tokens.
    """
    model = _random_model()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    (tilde,) = tokenizer.encode("~")
    follows = {tilde: tilde}
    for line in lines:
        ids = tokenizer.encode(line)
        assert follows.keys().isdisjoint(ids)
        follows |= pairwise([*ids, tilde])
    model.lm_head.weight.zero_()
    for axis, (token, following) in enumerate(follows.items()):
        model.model.embed_tokens.weight[token] = torch.eye(32)[axis]
        model.lm_head.weight[following, axis] = 1
    return model


@torch.no_grad()
def _greedy(model: Qwen3ForCausalLM, ids: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache."""
    new = []
    for _ in range(count):
        logits = model(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1]
        new.append(int(logits.argmax()))
    return new


def _write(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    new_tokens: int,
    thinking_tokens: int | None,
) -> list[list[int]]:
    """Generate new tokens for each prompt, in one batch."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    width = inputs["input_ids"].shape[1]
    budget = [] if thinking_tokens is None else [ThinkingBudget(tokenizer, thinking_tokens, width)]
    out = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList(budget),
        eos_token_id=256,
        pad_token_id=257,
    )
    return out[:, width:].tolist()


@pytest.mark.parametrize("thinking_tokens", [1, 2, 7, 16])
@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
def test_open_reasoning_is_closed_at_its_budget(tokenizer, opening, thinking_tokens):
    model, prompt = _random_model(), f"What is it?{opening}"
    ids, ending = tokenizer.encode(prompt), tokenizer.encode(ENDING)
    reasoning = _greedy(model, ids, thinking_tokens)
    answer = _greedy(model, [*ids, *reasoning, *ending], 10)
    assert "think>" not in tokenizer.decode(reasoning + answer)
    assert 256 not in reasoning + answer
    (new,) = _write(model, tokenizer, [prompt], thinking_tokens + len(ending) + 10, thinking_tokens)
    assert new == reasoning + ending + answer
    (free,) = _write(model, tokenizer, [prompt], len(new), None)
    assert free != new


def test_reasoning_that_the_model_closes_is_unchanged(tokenizer):
    model = _reciter(tokenizer, "\nabc</think>defg")
    # Budgets with and without room for the last token of the tag.
    spent = len(tokenizer.encode("abc</think>")) - 1
    (free,) = _write(model, tokenizer, ["x<think>\n"], 30, None)
    assert tokenizer.decode(free).startswith("abc</think>defg~~~")
    for thinking_tokens in (spent + 1, spent + 2, 29):
        assert _write(model, tokenizer, ["x<think>\n"], 30, thinking_tokens) == [free]
    (cut,) = _write(model, tokenizer, ["x<think>\n"], 30, spent)
    assert cut[: spent + len(tokenizer.encode(ENDING))] == free[:spent] + tokenizer.encode(ENDING)


def test_the_model_may_open_reasoning_itself(tokenizer):
    ending = tokenizer.encode(ENDING)
    no_reasoning = _reciter(tokenizer, "?abcdefg")
    for prompt in ("what?", "<think></think>what?", "is <think> what?"):
        (free,) = _write(no_reasoning, tokenizer, [prompt], 20, None)
        assert _write(no_reasoning, tokenizer, [prompt], 20, 3) == [free]
    model = _reciter(tokenizer, "?a<think>bcdefg")
    (free,) = _write(model, tokenizer, ["what?"], 40, None)
    assert tokenizer.decode(free).startswith("a<think>bcdefg")
    opened = 1 + len(tokenizer.encode("<think>"))
    for thinking_tokens in (opened, opened + 1, opened + 5):
        (new,) = _write(model, tokenizer, ["what?"], 40, thinking_tokens)
        assert new[:thinking_tokens] == free[:thinking_tokens]
        assert new[thinking_tokens : thinking_tokens + len(ending)] == ending
        assert tokenizer.decode(new).count("</think>") == 1
    # Reasoning that opens after the budget is spent is closed immediately.
    (new,) = _write(model, tokenizer, ["what?"], 40, 1)
    assert new[: opened + len(ending)] == free[:opened] + ending


def test_a_second_reasoning_is_unchanged(tokenizer):
    # The model opens reasoning after each line break, including that of the ending.
    model = _reciter(tokenizer, "\n<think>")
    (new,) = _write(model, tokenizer, ["<think>\n"], 40, 3)
    text = tokenizer.decode(new)
    assert text.count("</think>") == 1
    assert "<think>" in text.split("</think>")[1]


def test_each_row_of_a_batch_has_its_own_budget():
    tokenizer = _tokenizer("plain")
    model = _reciter(tokenizer, "\nabc</think>defg", "?hij", "!klm<think>nopqrs", " uvw")
    prompts = ["x<think>\n", "a long one, so that others are padded?", "so!", "y<think> "]
    together = _write(model, tokenizer, prompts, 40, 14)
    assert together == [_write(model, tokenizer, [p], 40, 14)[0] for p in prompts]
    texts = [tokenizer.decode(new) for new in together]
    assert texts[0].startswith("abc</think>defg~~")
    assert [text.count("\n</think>\n\n") for text in texts] == [0, 0, 1, 1]
    assert texts[1].startswith("hij~~")


def _samples(tokenizer: PreTrainedTokenizerFast, *prompts: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "task": "key",
            "length": 64,
            "sample": range(len(prompts)),
            "prompt": prompts,
            "tokens": [len(tokenizer.encode(prompt)) for prompt in prompts],
            "max_new_tokens": 30,
        }
    )


def test_predictions_include_reasoning(tokenizer):
    model = _reciter(tokenizer, "\nabc</think>defg", "?z", " uvw")
    samples = _samples(tokenizer, "x<think>\n", "y<think> ", "what?")
    predictions, *_ = generate_answers(
        model, tokenizer, samples, system="dense", thinking_tokens=14
    )
    closed, forced, plain = predictions["prediction"]
    # The prediction includes an opening tag that is part of the prompt.
    assert closed.startswith("<think>abc</think>defg~~")
    assert forced.startswith("<think>uvw~~")
    assert forced.count("~\n</think>\n\n") == 1
    assert plain.startswith("z~~")
    assert "think>" not in plain


def test_generation_without_a_budget_is_unchanged(tokenizer):
    model = _reciter(tokenizer, "?a<think>bcdefg", "!xyz")
    samples = _samples(tokenizer, "what?", "so!", "x<think>")
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense")
    for answer, prompt in zip(predictions["prediction"], samples["prompt"], strict=True):
        new = _greedy(model, tokenizer.encode(prompt), 30)
        assert answer == tokenizer.decode(new)
    assert predictions["prediction"][0].startswith("a<think>bcd")
    assert "</think>" not in "".join(predictions["prediction"])


def test_predictions_omit_special_tokens_except_tags():
    tokenizer = _tokenizer("special")
    model = _reciter(tokenizer, "\nab</think>c<eos>")
    samples = _samples(tokenizer, "x<think>\n")
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense", thinking_tokens=9)
    assert predictions["prediction"].to_list() == ["<think>ab</think>c"]
    assert predictions["stop_reason"].to_list() == ["eos"]


def test_a_tokenizer_that_cannot_encode_the_tag_is_an_error():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(ValueError, match=r"cannot write </think>; write 0$"):
        ThinkingBudget(tokenizer, 5, 1)


def test_reasoning_is_open_if_a_prompt_ends_with_the_tag():
    assert opens_reasoning("a<think>")
    assert opens_reasoning("a<think>\n\n")
    assert not opens_reasoning("a<think>\n\n</think>\n\n")
    assert not opens_reasoning("write <think> first")
