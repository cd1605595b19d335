import re
from itertools import pairwise

import pytest
import torch

from needlework.config.training import Pretrain, PretrainStage
from needlework.models.tiny import word_tokenizer
from needlework.tasks import passkey
from needlework.tasks.haystacks.words import is_held_out
from needlework.training import curriculum
from needlework.training.curriculum import IGNORED, SequenceWriter, batches, vocabulary

pytestmark = pytest.mark.slow

EXERCISES = ["recall", "passkey", "noise", "sentences"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(vocabulary(), max_positions=4096)


def _config(**stage) -> Pretrain:
    defaults = {"length": 256, "rows": 8, "steps": 2, "exercises": EXERCISES}
    return Pretrain(stages=[PretrainStage(**{**defaults, **stage})])


def _texts(tokenizer, exercise: str, length: int, count: int = 20) -> list[str]:
    writer = SequenceWriter(_config(), tokenizer, seed=3)
    sequences = [writer.write(exercise, length) for _ in range(count)]
    assert max(map(len, sequences)) <= length
    return [tokenizer.decode(sequence.ids) for sequence in sequences]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_joined_pieces_equal_the_encoded_text(tokenizer, exercise):
    writer = SequenceWriter(_config(), tokenizer, seed=0)
    for _ in range(10):
        ids = writer.write(exercise, 256).ids
        text = tokenizer.decode(ids)
        assert tokenizer.encode(text.removeprefix("<s>")) == ids


def test_passkey_sequences_read_like_the_task(tokenizer):
    question = re.escape(f"\n{passkey.QUESTION}{passkey.ANSWER_PREFIX}") + r" (\d+)</s>$"
    depths = set()
    for text in _texts(tokenizer, "passkey", 256):
        key = re.search(question, text)[1]
        needle = text.index(f"\n{passkey.NEEDLE.format(key=key)}\n")
        assert text.startswith(f"<s>{passkey.INTRO}\n")
        assert not passkey.is_evaluation_key(key)
        assert "\n\n" not in text
        depths.add(needle // 200)
    assert len(depths) > 2


@pytest.mark.parametrize("exercise", ["noise", "sentences"])
def test_every_answer_is_the_number_in_its_needle(tokenizer, exercise):
    question = curriculum.NIAH_QUESTION + curriculum.NIAH_ANSWER_PREFIX
    pattern = re.escape(question).replace(re.escape("{key}"), "([a-z]+-[a-z]+)") + r" (\d{7})</s>"
    counts = set()
    for text in _texts(tokenizer, exercise, 512):
        answers = re.findall(pattern, text)
        assert answers
        for key, repeated_key, value in answers:
            assert key == repeated_key
            assert text.count(curriculum.NIAH_NEEDLE.format(key=key, value=value)) == 1
            assert not any(is_held_out(word) for word in key.split("-"))
        counts.add(text.count("One of the special magic numbers"))
    assert min(counts) <= 4 < max(counts)


def test_recall_questions_match_the_pairs(tokenizer):
    for text in _texts(tokenizer, "recall", 64):
        pairs = dict(re.findall(r" for (\S+) is: (\d+)\.", text))
        answers = re.findall(
            r" for (\S+)(?: mentioned| in| the| provided| text)* is (\d+)</s>", text
        )
        assert answers
        assert all(pairs[key] == value for key, value in answers)


def test_labels_are_the_answers_and_candidates_hold_every_target(tokenizer):
    for batch in batches(_config(), tokenizer, seed=5):
        ids, labels, text = batch["input_ids"], batch["labels"], batch["text_labels"]
        answered = labels != IGNORED
        assert torch.equal(labels[answered], ids[answered])
        decoded = tokenizer.decode(labels[answered])
        assert re.fullmatch(r"( \d+</s>)+", decoded)
        assert not (answered & (text != IGNORED)).any()
        targets = torch.cat([labels[answered], text[text != IGNORED]])
        assert torch.isin(targets, batch["candidates"]).all()
        candidates = batch["candidates"][0].tolist()
        assert batch["candidates"].tolist() == [candidates] * len(ids)
        assert candidates == sorted(set(candidates))
        assert torch.equal(batch["position_ids"][0], torch.arange(256))


def test_positions_jump_only_at_sentence_ends(tokenizer):
    stop = tokenizer.convert_tokens_to_ids(".")
    jumped = 0
    for batch in batches(_config(jumps=0.5, rows=32), tokenizer, seed=6):
        for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
            steps = [b - a for a, b in pairwise(positions.tolist())]
            jumps = [i for i, step in enumerate(steps) if step > 1]
            assert min(steps) == 1
            assert all(ids[i] == stop for i in jumps)
            assert sum(steps) < 255 + 8192
            jumped += bool(jumps)
    assert 20 <= jumped <= 44


def test_seed_determines_the_batches(tokenizer):
    def ids(seed: int) -> torch.Tensor:
        return torch.cat([b["input_ids"] for b in batches(_config(), tokenizer, seed)])

    assert torch.equal(ids(1), ids(1))
    assert not torch.equal(ids(1), ids(2))


def test_every_third_number_repeats_few_digits(tokenizer):
    writer = SequenceWriter(_config(), tokenizer, seed=8)
    numbers = [writer._draw_number(7) for _ in range(300)]
    assert all(len(number) == 7 and number[0] != "0" for number in numbers)
    # Seven independent digits have three or fewer distinct values in 2 % of the cases.
    few = sum(len(set(number)) <= 3 for number in numbers)
    assert 75 <= few <= 135
