"""Special tokens are tokens where a chat template puts them, and text where text spells them."""

import pytest
from support.toy_tokenizers import KINDS
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from needlework.evaluation.streaming.token_source import encoder
from needlework.sources.control_tokens import (
    ControlTokens,
    control_tokens,
    special_token_pattern,
    spelled_tokens,
)

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|im_end|>s"]
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CONTENT = "They write <|im_end|> here, <s> there and <|im_start|>."


@pytest.fixture(params=["byte_level", "merging_newlines"])
def tokenizer(request):
    tokenizer = KINDS[request.param]()
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<s>", rstrip=True)])
    return tokenizer


def in_pieces(tokenizer, pieces):
    """Encode each piece on its own: special tokens by their ids, text without them."""
    ids = [] if tokenizer.post_processor is None else [tokenizer.token_to_id("<s>")]
    for piece in pieces:
        token = tokenizer.token_to_id(piece) if piece in SPECIAL else None
        tokenizer.encode_special_tokens = True
        text = tokenizer.encode(piece, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        ids += text if token is None else [token]
    return ids


def test_only_tokens_of_the_template_are_tokens(tokenizer):
    control, prompt = ControlTokens(tokenizer), HEAD + CONTENT + TAIL
    marked = control.mark(HEAD) + CONTENT + control.mark(TAIL)
    spans = control.spans(prompt, marked)
    assert [prompt[start:end] for start, end in spans] == [SPECIAL[0], SPECIAL[1], SPECIAL[0]]
    pieces = [SPECIAL[0], f"user\n{CONTENT}", SPECIAL[1], "\n", SPECIAL[0], "assistant\n"]
    assert control.ids(prompt, spans) == in_pieces(tokenizer, pieces)
    offsets = control.tokenizer.encode(marked).offsets
    assert "".join(prompt[start:end] for start, end in offsets) == prompt


def test_a_prompt_that_spells_none_keeps_its_ids(tokenizer):
    control, prompt = ControlTokens(tokenizer), f"{HEAD}The sky.\n{TAIL}"
    ids = control.allowing.encode(prompt).ids
    assert control.ids(prompt, control.spans(prompt, control.mark(prompt))) == ids
    assert control.ids(prompt, None) == ids
    assert control.ids("The sky.\n", []) == control.allowing.encode("The sky.\n").ids


def test_allowed_text_is_the_token(tokenizer):
    ids = ControlTokens(tokenizer).ids(CONTENT, None)
    assert {tokenizer.token_to_id(token) for token in (*SPECIAL[:2], "<s>")} <= set(ids)


def test_text_within_the_template_can_stay_text(tokenizer):
    control = ControlTokens(tokenizer)
    system = "Say <|im_end|>."
    marked = control.mark(f"<|im_start|>{system}<|im_end|>", system)
    assert marked.count(system) == 1
    assert "<|im_start|>" not in marked
    assert marked.count("<|im_end|>") == 1


def test_counts_spelled_tokens(tokenizer):
    pattern = special_token_pattern(tokenizer)
    assert dict(spelled_tokens(pattern, f"{CONTENT}<|im_end|>s")) == {
        "<|im_end|>": 1,
        "<|im_start|>": 1,
        "<s>": 1,
        "<|im_end|>s": 1,
    }


def word_level() -> Tokenizer:
    words = ["<unk>", "</s>", "<|im_start|>", "a", "b", "user"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:3])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<|im_start|>", 0.0)]
    pieces += [(letter, -3.0) for letter in "abuser</>|im_t "]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<unk>", "</s>", "<|im_start|>"])
    return tokenizer


@pytest.mark.parametrize("make", [word_level, unigram])
def test_words_of_the_vocabulary_that_are_special_tokens_are_text_too(make):
    tokenizer = make()
    control = ControlTokens(tokenizer)
    head, text = "<|im_start|>user ", "a </s> b <|im_start|> a"
    prompt = head + text
    spans = control.spans(prompt, control.mark(head) + text)
    ids = control.ids(prompt, spans)
    assert (ids.count(1), ids.count(2), ids[0]) == (0, 1, 2)
    assert ids[-1] == tokenizer.token_to_id("a")
    allowed = control.ids(prompt, None)
    assert (allowed.count(1), allowed.count(2)) == (1, 2)
    streamed = encoder(tokenizer).encode(text).ids
    assert not {1, 2} & set(streamed)
    assert {1, 2} <= set(encoder(tokenizer, "allow").encode(text).ids)


def test_copies_are_made_once_for_a_tokenizer_that_stays_the_same(tokenizer):
    control = control_tokens(tokenizer)
    assert control_tokens(tokenizer) is control
    tokenizer.add_special_tokens(["<new>"])
    assert control_tokens(tokenizer).spelled("<new>") == {"<new>": 1}
