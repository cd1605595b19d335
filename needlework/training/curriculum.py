"""Synthetic pretraining sequences: texts with keys and their numbers, then questions about them."""

import random
from collections.abc import Callable, Iterator
from string import Formatter

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from needlework.config.training import Exercise, Pretrain, PretrainStage
from needlework.tasks import niah, passkey
from needlework.tasks.haystacks.filler import PARAGRAPH
from needlework.tasks.haystacks.haystack import NEEDLE
from needlework.tasks.haystacks.sentences import random_sentence, third_person
from needlework.tasks.haystacks.words import draw_keys, words
from needlework.training.loop import IGNORED, Batch

RECALL_NEEDLE = " for {key} is: {value}."
RECALL_PREFIXES = (
    " for {key} is",
    " for {key} mentioned is",
    " for {key} mentioned in is",
    " for {key} mentioned in the is",
    " for {key} mentioned in the text is",
    " for {key} mentioned in the provided text is",
)
# The one form of niah that the model learns: number values, word keys.
NIAH_INTRO = niah.INTRO_ONE.format(value="number")
NIAH_NEEDLE = NEEDLE.format(values="numbers", key="{key}", value="{value}")
NIAH_QUESTION = niah.QUESTION_ONE.format(value="number", query="{key}")
NIAH_ANSWER_PREFIX = niah.ANSWER_PREFIX_ONE.format(value="number", query="{key}")
NIAH_DIGITS = 7
SENTENCES = 4000
"""Size of the pool that sentences are drawn from."""


def vocabulary() -> list[str]:
    """Texts with every word of the sequences and tasks, after its space or hyphen."""
    nouns, adjectives, verbs = words("noun"), words("adjective"), words("verb")
    templates = [
        *(passkey.INTRO, passkey.FILLER, passkey.NEEDLE, passkey.QUESTION, passkey.ANSWER_PREFIX),
        *(NIAH_INTRO, PARAGRAPH, NIAH_NEEDLE, NIAH_QUESTION, NIAH_ANSWER_PREFIX),
    ]
    return [
        *(f" {word}" for word in (*nouns, *adjectives, *verbs, *map(third_person, verbs))),
        *(f" {adjective.capitalize()}" for adjective in adjectives),
        *(f"-{noun}" for noun in nouns),
        *templates,
        *(f" {template}" for template in templates),
        "The A An",
        " A An",
    ]


class TokenSequence:
    """A growing sequence of token ids, with a flag for those that are part of an answer."""

    def __init__(self, ids: list[int]):
        self.ids = ids
        self.answers = [False] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: list[int], *, answer: bool = False) -> None:
        self.ids += ids
        self.answers += [answer] * len(ids)


class SequenceWriter:
    """Generates training sequences as token ids, from its own random stream.

    Pieces are encoded separately and joined; with this tokenizer the result equals encoding the
    whole text.
    """

    def __init__(self, config: Pretrain, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.config, self.tokenizer = config, tokenizer
        self.random = random.Random(f"curriculum {seed}")
        self._cache: dict[str, list[int]] = {}
        self._pool = [
            self.encode(f" {random_sentence(self.random, 'training')}") for _ in range(SENTENCES)
        ]

    def encode(self, text: str) -> list[int]:
        """Encode a text without `<s>`, and cache the result."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def fill(self, template: str, **fields: list[int]) -> list[int]:
        """Encode a template; tokens from `fields` replace each `{name}` and the space before it."""
        ids: list[int] = []
        for text, name, _, _ in Formatter().parse(template):
            ids += self.encode(text.removesuffix(" ") if name else text)
            ids += fields[name] if name else []
        return ids

    def write(self, exercise: Exercise, length: int) -> TokenSequence:
        """Generate one sequence of at most `length` tokens."""
        sequence = TokenSequence([self.tokenizer.bos_token_id])
        getattr(self, f"_{exercise}")(sequence, length)
        return sequence

    def _key(self, name: str) -> list[int]:
        adjective, noun = name.split("-")
        return self.encode(f" {adjective}") + self.encode(f"-{noun}")

    def _draw_number(self, digits: int) -> str:
        """Draw a number without a leading zero; every third uses at most three distinct digits.

        Repeated digits are harder to copy, because the preceding digits do not determine the next.
        """
        alphabet = list(range(10))
        if self.random.random() < 1 / 3:
            alphabet = self.random.sample(alphabet, 3)
        first = self.random.choice([digit for digit in alphabet if digit])
        return "".join(map(str, (first, *self.random.choices(alphabet, k=digits - 1))))

    def _number(self, value: str) -> list[int]:
        return self.encode(" ") + [self.encode(digit)[0] for digit in value]

    def _pairs(self, count: int, digits: list[int]) -> list[dict[str, list[int]]]:
        pairs = []
        for name in draw_keys(self.random, count, "training"):
            value = self._draw_number(self.random.choice(digits))
            pairs.append({"key": self._key(name), "value": self._number(value)})
        return pairs

    def _recall(self, sequence: TokenSequence, length: int) -> None:
        pairs = self._pairs(max(1, length // 30), [2, 3, 4])
        for pair in pairs:
            sequence.add(self.fill(RECALL_NEEDLE, **pair))
        self._add_questions(sequence, pairs, self.random.choice(RECALL_PREFIXES), length)

    def _passkey(self, sequence: TokenSequence, length: int) -> None:
        digits = self.random.choice(self.config.digits)
        key = self._draw_number(digits)
        while passkey.is_evaluation_key(key):
            key = self._draw_number(digits)
        number = self._number(key)
        needle = self.fill(f"{passkey.NEEDLE}\n", key=number)
        question = self.fill(f"{passkey.QUESTION}{passkey.ANSWER_PREFIX}")
        intro = self.encode(f"{passkey.INTRO}\n")
        room = length - len(sequence) - len(intro + needle + question + number) - 3
        before = self._filler(round(room * self.random.random()), whole_sentences=True)
        after = self._filler(room - len(before), whole_sentences=False)
        newline = self.encode("\n")
        sequence.add(intro + before + (newline if before else []) + needle)
        sequence.add(after + (newline if after else []) + question)
        sequence.add([*number, self.tokenizer.eos_token_id], answer=True)

    def _filler(self, tokens: int, *, whole_sentences: bool) -> list[int]:
        """Repeat the filler for at most `tokens` tokens, optionally only whole sentences."""
        tokens = max(tokens, 0)
        repeat = self.encode(f" {passkey.FILLER}")
        filler = (self.encode(passkey.FILLER) + repeat * (tokens // len(repeat)))[:tokens]
        stop = self.encode(".")[0]
        while whole_sentences and filler and filler[-1] != stop:
            filler.pop()
        return filler

    def _noise(self, sequence: TokenSequence, length: int) -> None:
        line = self.encode(f"{PARAGRAPH}\n")
        self._needles(sequence, length, lambda: line, f"{NIAH_NEEDLE}\n")

    def _sentences(self, sequence: TokenSequence, length: int) -> None:
        pool = self._pool
        self._needles(sequence, length, lambda: self.random.choice(pool), f" {NIAH_NEEDLE}")

    def _needles(
        self, sequence: TokenSequence, length: int, unit: Callable[[], list[int]], needle: str
    ) -> None:
        """Write needles among units of text, then questions.

        Half of the sequences have one to four needles, as tasks do; the others up to the maximum.
        """
        newline = self.encode("\n")
        question = f"\n{NIAH_QUESTION}{NIAH_ANSWER_PREFIX}"
        sequence.add(self.encode(NIAH_INTRO) + newline)
        sample = self._pairs(1, [NIAH_DIGITS])[0]
        needle_tokens = len(self.fill(needle, **sample))
        question_tokens = len(self.fill(question, **sample) + sample["value"]) + 1
        room = length - len(sequence)
        most = max(1, min((room - 2 * question_tokens) // needle_tokens, self.config.most_needles))
        few = self.random.random() < 0.5
        pairs = self._pairs(self.random.randint(1, min(4, most) if few else most), [NIAH_DIGITS])
        room -= len(pairs) * needle_tokens
        room -= min(room // question_tokens, max(2, len(pairs))) * question_tokens
        parts = [self.fill(needle, **pair) for pair in pairs]
        while room > 0:
            parts.append(unit())
            room -= len(parts[-1])
        self.random.shuffle(parts)
        haystack = [token for part in parts for token in part]
        sequence.add(haystack[:-1] if haystack[-1:] == newline else haystack)
        self._add_questions(sequence, pairs, question, length)

    def _add_questions(
        self, sequence: TokenSequence, pairs: list[dict[str, list[int]]], question: str, length: int
    ) -> None:
        """Add questions and answers up to `length`; every key comes once before any comes twice."""
        order: list[int] = []
        while True:
            order = order or self.random.sample(range(len(pairs)), len(pairs))
            pair = pairs[order.pop()]
            question_ids = self.fill(question, **pair)
            answer = [*pair["value"], self.tokenizer.eos_token_id]
            if len(sequence) + len(question_ids) + len(answer) > length:
                return
            sequence.add(question_ids)
            sequence.add(answer, answer=True)


def batches(config: Pretrain, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Batch]:
    """Yield one batch per step of every stage, in order.

    A batch holds, each int64 with one entry per row: input_ids, position_ids, attention_mask and
    labels [rows, tokens], labels -100 outside answers; text_labels [rows, tokens], the same for a
    sample of the other tokens; candidates [rows, n], the sorted token ids of the softmax, the same
    in each row.
    """
    writer = SequenceWriter(config, tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    for stage in config.stages:
        for _ in range(stage.steps):
            yield _batch(stage, writer, generator)


def _batch(stage: PretrainStage, writer: SequenceWriter, generator: torch.Generator) -> Batch:
    config, tokenizer = writer.config, writer.tokenizer
    shape = (stage.rows, stage.length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    answers = torch.zeros(shape, dtype=torch.bool)
    increments = torch.ones(shape, dtype=torch.int64)
    for row in range(stage.rows):
        exercise = stage.exercises[row % len(stage.exercises)]
        sequence = writer.write(exercise, stage.length)
        ids[row, : len(sequence)] = torch.tensor(sequence.ids)
        answers[row, : len(sequence)] = torch.tensor(sequence.answers)
        if writer.random.random() < stage.jumps:
            _add_jumps(
                increments[row],
                ids[row] == writer.encode(".")[0],
                config.longest_jump,
                writer.random,
            )
    labels = ids.masked_fill(~answers, IGNORED)
    sampled = torch.rand(shape, generator=generator) < config.text_share
    text = ids.masked_fill(~sampled | answers | (ids == tokenizer.pad_token_id), IGNORED)
    distractors = torch.randint(len(tokenizer), (config.distractors,), generator=generator)
    digits = torch.tensor([writer.encode(digit)[0] for digit in "0123456789"])
    candidates = torch.cat([labels[labels >= 0], text[text >= 0], digits, distractors]).unique()
    return {
        "input_ids": ids,
        "position_ids": increments.cumsum(1) - 1,
        # Without a mask, transformers reads a jump as the start of another packed sequence.
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "text_labels": text,
        "candidates": candidates.expand(stage.rows, -1),
    }


def _add_jumps(increments: Tensor, is_stop: Tensor, longest: int, rng: random.Random) -> None:
    """Make positions jump after up to two sentence ends, by less than `longest` in total (PoSE)."""
    ends = is_stop.nonzero().flatten().tolist()
    for end in rng.sample(ends, min(2, len(ends))):
        if end + 1 < len(increments):
            increments[end + 1] += rng.randrange(longest // 2)
