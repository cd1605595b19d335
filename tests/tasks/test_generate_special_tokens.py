"""Text that spells special tokens: counted, measured and answered as text, unless allowed."""

import polars as pl
import pytest
from support.toy_tokenizers import byte_level

from needlework.config.tasks.needles import FreeNeedle, Needles
from needlework.config.tasks.passkey import Passkey
from needlework.sources.control_tokens import ControlTokens
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.haystacks.punkt import sentence_table
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame

CHAT = ChatFrame("<|s|>system\nNo </s>.<|e|>\n<|s|>user\n", "<|e|>\n<|s|>a\n", "No </s>.", True)
ESSAY = "He ended it with </s> and went. She wrote <|e|> on the wall. It rained on the sea. " * 40


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|s|>", "<|e|>", "</s>"])
    return tokenizer


def samples_of(tokenizer, task, frame, length, **kwargs):
    sampler = Sampler(
        task,
        tokenizer,
        task_name="x",
        length=length,
        depths=[50],
        seed=0,
        chat_frame=frame,
        **kwargs,
    )
    return make_samples(sampler, 2)


@pytest.mark.parametrize("how", ["text", "allow"])
@pytest.mark.parametrize("frame", [NO_CHAT_FRAME, CHAT])
def test_haystacks(tokenizer, frame, how, caplog):
    needle = FreeNeedle(text="The door opens with a song.", answer="a song")
    task = Needles(needles=[needle], question="What?", haystack="essay", special_tokens=how)
    haystack = sentence_table([ESSAY], tokenizer, 400)
    samples = samples_of(tokenizer, task, frame, 400, haystack=haystack)
    control, special = (
        ControlTokens(tokenizer),
        {tokenizer.token_to_id(t) for t in ("<|e|>", "</s>")},
    )
    for row in samples.iter_rows(named=True):
        ids = control.ids(row["prompt"], row["control_spans"])
        texts = [row["context"], row["question"], frame.system_prompt or ""]
        spelled = sum(text.count(token) for text in texts for token in ("<|e|>", "</s>"))
        in_frame = 2 if frame is CHAT else 0
        assert len(ids) == row["tokens"]
        assert row["spelled_tokens"] == spelled > 4
        assert sum(i in special for i in ids) == in_frame + (spelled if how == "allow" else 0)
        (token,) = {needle["token_position"] for needle in row["needles"]}
        assert tokenizer.decode(ids[token:]).lstrip().startswith("The door opens")
    encoded = "text" if how == "text" else "special tokens"
    assert "tasks.x: sample 0 at 400 spells special tokens (" in caplog.text
    assert f"), encoded as {encoded}" in caplog.text


def test_answers_do_not_depend_on_the_key(tokenizer):
    text, allow = (
        samples_of(tokenizer, Passkey(special_tokens=how), CHAT, 300) for how in ("text", "allow")
    )
    assert text.select("seed", "outputs").equals(allow.select("seed", "outputs"))
    assert allow["control_spans"].to_list() == [None, None]
    assert text["control_spans"].list.len().to_list() == [5, 5]


def test_the_filler_of_a_passkey(tokenizer):
    task = Passkey(filler="Stop </s> here. Go on.")
    samples = samples_of(tokenizer, task, NO_CHAT_FRAME, 200)
    ids = ControlTokens(tokenizer).ids(samples["prompt"][0], samples["control_spans"][0])
    assert tokenizer.token_to_id("</s>") not in ids
    assert len(ids) == samples["tokens"][0] <= 200 - task.max_new_tokens
    assert pl.Series([200 - task.max_new_tokens - len(ids)]).max() <= 8
