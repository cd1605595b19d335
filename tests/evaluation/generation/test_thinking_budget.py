"""Budgets of thought, in real generation by small models: random ones, and ones that recite."""

from itertools import pairwise

import polars as pl
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from needlework.evaluation.generation.generate import generate_answers
from needlework.evaluation.generation.thinking_budget import ThinkingBudget, opens_thought

ENDING = "\n</think>\n\n"


def _tokenizer(tags: str) -> PreTrainedTokenizerFast:
    """Bytes; the tags of a thought are one token each (plain or special), or bytes too."""
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
    """A model that goes on with the rest of a line after any token of it, and behind it with "~".

    No token stands twice in the lines; they have 31 at most.
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
    """The most likely token, again and again, from the whole text each time: no cache."""
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
    """New tokens of each prompt, all in one batch."""
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
def test_an_open_thought_is_closed_at_its_budget(tokenizer, opening, thinking_tokens):
    model, prompt = _random_model(), f"What is it?{opening}"
    ids, ending = tokenizer.encode(prompt), tokenizer.encode(ENDING)
    thought = _greedy(model, ids, thinking_tokens)
    answer = _greedy(model, [*ids, *thought, *ending], 10)
    assert "think>" not in tokenizer.decode(thought + answer)
    assert 256 not in thought + answer
    (new,) = _write(model, tokenizer, [prompt], thinking_tokens + len(ending) + 10, thinking_tokens)
    assert new == thought + ending + answer
    (free,) = _write(model, tokenizer, [prompt], len(new), None)
    assert free != new


def test_a_thought_that_the_model_closes_is_left_alone(tokenizer):
    model = _reciter(tokenizer, "\nabc</think>defg")
    # A budget that the tag's last token fits in, and one that it does not.
    spent = len(tokenizer.encode("abc</think>")) - 1
    (free,) = _write(model, tokenizer, ["x<think>\n"], 30, None)
    assert tokenizer.decode(free).startswith("abc</think>defg~~~")
    for thinking_tokens in (spent + 1, spent + 2, 29):
        assert _write(model, tokenizer, ["x<think>\n"], 30, thinking_tokens) == [free]
    (cut,) = _write(model, tokenizer, ["x<think>\n"], 30, spent)
    assert cut[: spent + len(tokenizer.encode(ENDING))] == free[:spent] + tokenizer.encode(ENDING)


def test_a_prompt_that_opens_no_thought_leaves_it_to_the_model(tokenizer):
    ending = tokenizer.encode(ENDING)
    silent = _reciter(tokenizer, "?abcdefg")
    for prompt in ("what?", "<think></think>what?", "is <think> what?"):
        (free,) = _write(silent, tokenizer, [prompt], 20, None)
        assert _write(silent, tokenizer, [prompt], 20, 3) == [free]
    model = _reciter(tokenizer, "?a<think>bcdefg")
    (free,) = _write(model, tokenizer, ["what?"], 40, None)
    assert tokenizer.decode(free).startswith("a<think>bcdefg")
    opened = 1 + len(tokenizer.encode("<think>"))
    for thinking_tokens in (opened, opened + 1, opened + 5):
        (new,) = _write(model, tokenizer, ["what?"], 40, thinking_tokens)
        assert new[:thinking_tokens] == free[:thinking_tokens]
        assert new[thinking_tokens : thinking_tokens + len(ending)] == ending
        assert tokenizer.decode(new).count("</think>") == 1
    # Opened when the budget is spent: closed at once.
    (new,) = _write(model, tokenizer, ["what?"], 40, 1)
    assert new[: opened + len(ending)] == free[:opened] + ending


def test_a_second_thought_is_left_alone(tokenizer):
    # After each line break it opens a thought: after the ending too.
    model = _reciter(tokenizer, "\n<think>")
    (new,) = _write(model, tokenizer, ["<think>\n"], 40, 3)
    text = tokenizer.decode(new)
    assert text.count("</think>") == 1
    assert "<think>" in text.split("</think>")[1]


def test_rows_of_a_batch_have_budgets_of_their_own():
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


def test_answers_keep_their_thoughts(tokenizer):
    model = _reciter(tokenizer, "\nabc</think>defg", "?z", " uvw")
    samples = _samples(tokenizer, "x<think>\n", "y<think> ", "what?")
    predictions, *_ = generate_answers(
        model, tokenizer, samples, system="dense", thinking_tokens=14
    )
    closed, forced, plain = predictions["prediction"]
    # Of a thought that the prompt opens, the answer has the beginning too.
    assert closed.startswith("<think>abc</think>defg~~")
    assert forced.startswith("<think>uvw~~")
    assert forced.count("~\n</think>\n\n") == 1
    assert plain.startswith("z~~")
    assert "think>" not in plain


def test_no_thinking_leaves_generation_alone(tokenizer):
    model = _reciter(tokenizer, "?a<think>bcdefg", "!xyz")
    samples = _samples(tokenizer, "what?", "so!", "x<think>")
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense")
    for answer, prompt in zip(predictions["prediction"], samples["prompt"], strict=True):
        new = _greedy(model, tokenizer.encode(prompt), 30)
        assert answer == tokenizer.decode(new)
    assert predictions["prediction"][0].startswith("a<think>bcd")
    assert "</think>" not in "".join(predictions["prediction"])


def test_special_tokens_but_the_tags_are_left_out_of_answers():
    tokenizer = _tokenizer("special")
    model = _reciter(tokenizer, "\nab</think>c<eos>")
    samples = _samples(tokenizer, "x<think>\n")
    predictions, *_ = generate_answers(model, tokenizer, samples, system="dense", thinking_tokens=9)
    assert predictions["prediction"].to_list() == ["<think>ab</think>c"]
    assert predictions["stop_reason"].to_list() == ["eos"]


def test_a_tokenizer_without_the_letters_is_told():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(ValueError, match=r"cannot write </think>; set 0$"):
        ThinkingBudget(tokenizer, 5, 1)


def test_a_thought_is_open_where_a_prompt_ends_with_its_tag():
    assert opens_thought("a<think>")
    assert opens_thought("a<think>\n\n")
    assert not opens_thought("a<think>\n\n</think>\n\n")
    assert not opens_thought("write <think> first")
