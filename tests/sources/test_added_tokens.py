"""Special tokens around a text."""

import pytest
from support.toy_tokenizers import byte_level, merging_newlines
from tokenizers import processors

from needlework.sources.added_tokens import added_ids, prompt_tokenizer

APPENDING = {
    "template": processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    ),
    "only_after": processors.TemplateProcessing(
        single="$A </s> </s>", special_tokens=[("</s>", 1)]
    ),
    "bert": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    "roberta": processors.RobertaProcessing(("</s>", 1), ("<s>", 0), True, False),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
            ),
        ]
    ),
}


@pytest.mark.parametrize("kind", APPENDING)
def test_nothing_follows_the_text_of_a_prompt(kind):
    tokenizer, text = merging_newlines(), "The grass is green."
    tokenizer.post_processor = APPENDING[kind]
    whole = tokenizer.encode(text)
    end = max(i for i, special in enumerate(whole.special_tokens_mask) if not special) + 1
    prompt = prompt_tokenizer(tokenizer).encode(text)
    assert (prompt.ids, prompt.offsets) == (whole.ids[:end], whole.offsets[:end])
    assert tokenizer.encode(text).ids == whole.ids
    assert added_ids(tokenizer) == ([0] if kind != "only_after" else [], whole.ids[end:])


def test_prompt_tokenizer_copies_only_what_truncates_or_appends():
    byte_tokenizer = byte_level()
    assert prompt_tokenizer(byte_tokenizer) is byte_tokenizer
    truncating = type(byte_tokenizer).from_str(byte_tokenizer.to_str())
    truncating.enable_truncation(2)
    truncating.enable_padding(length=9)
    text = "The grass is green."
    assert prompt_tokenizer(truncating).encode(text).ids == byte_tokenizer.encode(text).ids
    assert len(truncating.encode(text)) == 9
