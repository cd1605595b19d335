"""Sums over pieces, compared with tokenizations of the whole."""

from random import Random

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.haystacks.filler import Filler
from needlework.tasks.haystacks.sentences import random_sentence
from needlework.tasks.prompts.token_counter import CharacterCounter, TokenCounter


def encoded_length(tokenizer, text):
    return len(tokenizer.encode(text, add_special_tokens=False))


def test_only_tokenizers_that_split_between_words_are_additive(
    additive_tokenizer, metaspace_tokenizer
):
    assert TokenCounter(additive_tokenizer).additive
    assert not TokenCounter(metaspace_tokenizer).additive


def copy_of(tokenizer):
    return Tokenizer.from_str(tokenizer.to_str())


def test_a_tokenizer_that_rewrites_or_never_splits_is_not_additive(byte_tokenizer):
    rewriting = copy_of(byte_tokenizer)
    rewriting.normalizer = normalizers.Replace(" ", "_")
    assert not TokenCounter(rewriting).additive
    whole_lines = copy_of(byte_tokenizer)
    whole_lines.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    assert not TokenCounter(whole_lines).additive


def test_pieces_add_up(additive_tokenizer):
    tokenizer = additive_tokenizer
    counter, random = TokenCounter(tokenizer), Random(1)
    sentences = [random_sentence(random) for _ in range(200)]
    sentences[7] = "12 monkeys (all of them) cost 3.50, he said..."
    text = "Intro.\n" + " ".join(sentences) + "\nWhat? The answer is"
    total = counter.count_head("Intro.\n") + counter.count_sentences(sentences).sum()
    total += counter.line_start_cost(sentences[0]) + counter.line_end_cost(sentences[-1])
    total += counter.count_tail("What?", " The answer is")
    assert total == len(prompt_tokenizer(tokenizer).encode(text))
    lines = "\n".join(["Intro.", *sentences, "What? The answer is"])
    total = counter.count_head("Intro.\n") + counter.count_lines(sentences).sum()
    assert total + counter.count_tail("What?", " The answer is") == len(
        prompt_tokenizer(tokenizer).encode(lines)
    )


def test_sentences_in_place_add_up_whatever_their_beginning(tokenizer):
    sentences = ["Rain fell.", "\u0301odd.", "...and so on", "(Yes.", "12 o'clock!", '"Who?"', "A"]
    counts = TokenCounter(tokenizer).count_in_place(sentences)
    for start in range(len(sentences)):
        text = "".join(f" {sentence}" for sentence in sentences[:start])
        more = encoded_length(tokenizer, text) - counts[:start].sum()
        # A token across the boundary belongs to the sentence where it starts.
        assert abs(more) <= 1
    assert counts.sum() == encoded_length(
        tokenizer, "".join(f" {sentence}" for sentence in sentences)
    )


def test_long_prompts_are_counted_in_chunks(byte_tokenizer, monkeypatch):
    monkeypatch.setattr("needlework.tasks.prompts.token_counter._CHUNK_CHARACTERS", 300)
    random = Random(2)
    text = "\n".join(" ".join(random_sentence(random) for _ in range(9)) for _ in range(40))
    assert TokenCounter(byte_tokenizer).count_whole(text) == len(byte_tokenizer.encode(text))


def test_two_line_breaks_can_be_one_token():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["A\n\n\n", "B\n\n\n"] * 9, trainer)
    assert encoded_length(tokenizer, "A\n\n") < encoded_length(tokenizer, "A\n\nB")
    head = TokenCounter(tokenizer).count_head("A\n\n")
    assert head == encoded_length(tokenizer, "A\n\nB") - encoded_length(tokenizer, "B")


def test_character_counter_counts_characters(byte_tokenizer):
    counter = CharacterCounter(byte_tokenizer)
    assert counter.count_words(["one", "three"]).tolist() == [4, 6]
    assert counter.count_whole("a b\n") == 4
    assert counter.line_start_cost("one") == -1
    assert counter.line_end_cost("one") == 1


@pytest.mark.parametrize("paragraph", ["The sky is blue. Here we go.", "Again and again!"])
def test_every_cut_of_the_filler_is_counted_right(additive_tokenizer, paragraph):
    tokenizer = additive_tokenizer
    counter = TokenCounter(tokenizer)
    filler = Filler(counter, paragraph)
    for tokens in range(120):
        text, used = filler.line_within(tokens)
        assert used == encoded_length(tokenizer, f"\n{text}Q") - encoded_length(tokenizer, "\nQ")
        assert used <= tokens
        assert (f"{paragraph} " * 60).startswith(text.removesuffix("\n"))
        lines, counts = filler.lines_within(tokens)
        joined = "".join(f"{line}\n" for line in lines)
        assert sum(counts) == encoded_length(tokenizer, f"\n{joined}Q") - encoded_length(
            tokenizer, "\nQ"
        )


def test_sentences_near_a_target_end_nearest_to_it(tokenizer):
    filler = Filler(TokenCounter(tokenizer))
    for tokens in (0, 3, 17.5, 40, 61, 99.9):
        text, used = filler.sentences_near(tokens, max_tokens=90)
        assert used <= 90
        assert text == "" or text.endswith(".\n")
        aims = {filler.sentences_near(aim, max_tokens=90) for aim in range(95)}
        best = min(abs(max(0, cost - 1) - tokens) for _, cost in aims)
        assert abs(max(0, used - 1) - tokens) == best
