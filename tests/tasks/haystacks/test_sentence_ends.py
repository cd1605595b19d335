"""Sentences of any script: they are split, and joined as the script does."""

from itertools import pairwise

import pytest

from needlework.config.tasks.niah import Niah
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.generate import Sampler
from needlework.tasks.haystacks.punkt import sentence_table, split_sentences
from needlework.tasks.haystacks.sentence_ends import join_sentences, needs_no_blank
from needlework.tasks.prompts.tokenizer import open_tokenizer

SENTENCES = {
    "chinese": ["我去了商店。", "他说：“你好吗？”", "然后离开了！", "今天下雨。"],
    "japanese": ["彼は「はい。」と言った。", "本当ですか？", "そうです。"],
    "hindi": ["क्या हाल है।", "मैं ठीक हूँ।"],
    "arabic": ["كيف حالك؟", "أنا بخير."],
    "urdu": ["میں گھر گیا۔", "وہ آیا۔"],
    "amharic": ["ሰላም ነው።", "ደህና ነኝ።"],
    "burmese": ["နေကောင်းလား။", "ကောင်းပါတယ်။"],
    "khmer": ["សួស្តី។", "លាហើយ។"],
    "armenian": ["Բարեւ։", "Ցտեսություն։"],
    "korean": ["안녕하세요.", "반갑습니다."],
}
WITHOUT_BLANK = {"chinese", "japanese"}


@pytest.mark.parametrize("script", SENTENCES)
def test_sentences_are_split_and_joined_as_written(script):
    sentences = SENTENCES[script]
    text = ("" if script in WITHOUT_BLANK else " ").join(sentences)
    if script != "japanese":  # splits inside the quotation too
        assert list(split_sentences([text])) == sentences
    joined, starts = join_sentences(list(split_sentences([text])))
    assert joined == text
    assert all(start < stop for start, stop in pairwise(starts))


def test_numbers_quotes_and_emoji_keep_their_sentence():
    text = "値は３．１４だ。 A good day 🙂 indeed."
    assert list(split_sentences([text])) == ["値は３．１４だ。", "A good day 🙂 indeed."]
    assert not needs_no_blank("A good day 🙂")
    assert not needs_no_blank('He said "no."')
    assert not needs_no_blank("")
    assert needs_no_blank("他说：“你好。”")


@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_prompts_of_chinese_text_have_no_blanks_and_exact_counts(tokenizer, unit):
    text = "".join(f"第{i}天我去了商店。他说：“你好吗？”" for i in range(400))
    tokenizer = prompt_tokenizer(tokenizer) if unit == "tokens" else open_tokenizer(None)
    table = sentence_table([text], tokenizer, 4000)
    sampler = Sampler(
        Niah(haystack="mine"),
        tokenizer,
        task_name="niah",
        length=2000,
        depths=[50],
        seed=1,
        haystack=table,
        length_unit=unit,
    )
    for index in range(2):
        row = sampler.sample(index)
        assert "。 " not in row["context"]
        assert "” " not in row["context"]
        used = row["tokens"] + (row["max_new_tokens"] if unit == "tokens" else 0)
        assert 1800 < used <= 2000
        if unit == "tokens":
            assert row["tokens"] == len(tokenizer.encode(row["prompt"]))
        else:
            (needle,) = row["needles"]
            assert row["prompt"][needle["token_position"] :].startswith("One of the special")
