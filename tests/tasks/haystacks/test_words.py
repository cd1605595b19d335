"""Word lists, keys and random sentences."""

from random import Random

import pytest

from needlework.tasks.haystacks.sentences import random_sentence, third_person
from needlework.tasks.haystacks.words import draw_keys, is_held_out, words


@pytest.mark.parametrize("kind", ["adjective", "noun", "verb"])
def test_training_and_held_out_words_partition_the_list(kind):
    training, held_out = set(words(kind, "training")), set(words(kind, "held_out"))
    assert not training & held_out
    assert training | held_out == set(words(kind))
    assert 0.06 < len(held_out) / len(words(kind)) < 0.14


def test_word_lists_are_plain_and_long():
    assert len(words("adjective")) > 850
    assert len(words("noun")) > 6500
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words("noun"))


@pytest.mark.parametrize("part", ["all", "training", "held_out"])
def test_keys_are_distinct_and_of_their_part(part):
    keys = draw_keys(Random(1), 500, part)
    assert len(set(keys)) == len(keys) == 500
    for key in keys:
        adjective, noun = key.split("-")
        assert adjective in words("adjective", part)
        assert noun in words("noun", part)


def test_a_word_is_held_out_in_all_lists():
    both = set(words("noun")) & set(words("adjective"))
    held_out = set(words("noun", "held_out")) | set(words("adjective", "held_out"))
    assert both
    assert all((word in held_out) == is_held_out(word) for word in both)


def test_training_sentences_have_no_held_out_word():
    random = Random(1)
    for _ in range(300):
        text = random_sentence(random, "training").removesuffix(".").lower().split()
        adjective, subject, verb, object_ = text[-4:]
        assert text[:-4] in ([], ["the"], ["a"], ["an"])
        if text[0] in ("a", "an"):
            assert (text[0] == "an") == (adjective[0] in "aeiou")
        assert adjective in words("adjective", "training")
        assert {subject, object_} <= set(words("noun", "training"))
        assert verb in {third_person(word) for word in words("verb", "training")}


def test_third_person():
    assert third_person("carry") == "carries"
    assert third_person("play") == "plays"
    assert third_person("wish") == "wishes"
    assert third_person("run") == "runs"
