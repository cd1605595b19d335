"""Special tokens that a tokenizer adds around a text, and tokenizers that append none."""

import json
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

_HIDDEN = "\U0010ffff"
"""A character that Unicode keeps out of texts."""
_ONE_TOKEN = Tokenizer(WordLevel({"a": 0}))


def added_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that a tokenizer adds before and after each text."""
    if tokenizer.post_processor is None:
        return [], []
    # One token of another tokenizer, as no text is known that every tokenizer can encode.
    encoding = tokenizer.post_processor.process(_ONE_TOKEN.encode("a"))
    mask = encoding.special_tokens_mask
    first, end = mask.index(0), len(mask) - mask[::-1].index(0)
    return encoding.ids[:first], encoding.ids[end:]


def prompt_tokenizer(
    tokenizer: Tokenizer, special_tokens: Literal["text", "allow"] = "text"
) -> Tokenizer:
    """The tokenizer itself, or a copy that neither truncates, pads nor appends special tokens.

    A model continues its prompt, so no end-of-text token may follow it.

    Args:
        special_tokens: what text that spells a special token becomes: its characters, or the token.
    """
    is_bounded = tokenizer.truncation is not None or tokenizer.padding is not None
    as_text = special_tokens == "text"
    has_special = any(token.special for token in tokenizer.get_added_tokens_decoder().values())
    differs = has_special and tokenizer.encode_special_tokens != as_text
    if not is_bounded and not differs and not added_ids(tokenizer)[1]:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    if added_ids(copy)[1]:
        state = json.loads(copy.to_str())
        state["post_processor"] = _without_appended(state["post_processor"])
        copy = Tokenizer.from_str(json.dumps(state))
    return reading_special_tokens_as_text(copy) if as_text else copy


def reading_special_tokens_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, changed to encode text that spells a special token as its characters."""
    tokenizer.encode_special_tokens = True
    special = [
        (i, token.content)
        for i, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content != getattr(tokenizer.model, "unk_token", None)
    ]
    # Models that look words up (WordLevel) or prefer long pieces (Unigram) find it nevertheless.
    found = [t for i, t in special if i in tokenizer.encode(t, add_special_tokens=False).ids]
    if not found:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    names = {text: f"{_HIDDEN}{text}" for text in found}
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = (
        {names.get(text, text): i for text, i in vocab.items()}
        if isinstance(vocab, dict)
        else [[names.get(text, text), score] for text, score in vocab]
    )
    hidden = Tokenizer.from_str(json.dumps(state))
    hidden.encode_special_tokens = True
    try:
        hidden.encode_batch(found)
    except Exception:  # tokenizers raises nothing more specific, here for a missing unk_token
        return tokenizer
    return hidden


def _without_appended(state: dict[str, Any]) -> dict[str, Any]:
    """The JSON state of a post-processor, without the special tokens after a single text."""
    kind = state["type"]
    if kind == "Sequence":
        return {**state, "processors": [_without_appended(part) for part in state["processors"]]}
    if kind == "TemplateProcessing":
        last = max(i for i, piece in enumerate(state["single"]) if "Sequence" in piece)
        return {**state, "single": state["single"][: last + 1]}
    if kind in ("BertProcessing", "RobertaProcessing"):
        token, token_id = state["cls"]
        template = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": token, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
        }
        if kind == "BertProcessing":
            return template
        keys = ("add_prefix_space", "trim_offsets")
        offsets = {"type": "ByteLevel", "use_regex": True, **{key: state[key] for key in keys}}
        return {"type": "Sequence", "processors": [offsets, template]}
    return state
