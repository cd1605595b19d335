"""Special tokens that a tokenizer adds around a text, and tokenizers that append none."""

import json
from typing import Any, Literal

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

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
    copy.encode_special_tokens = as_text
    return copy


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
