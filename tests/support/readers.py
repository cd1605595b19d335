"""Readers that answer a prompt as a careful person would, from its text alone.

Each gives the answers to what is asked, and what a reader who takes other keys would answer.
"""

import re
from collections import Counter
from typing import NamedTuple

_DOOR = r"The {} door opens with ([^.]+)\."


class Reading(NamedTuple):
    right: list[str]
    wrong: list[str]
    """As much of it as there is: nothing where the prompt has no other keys."""


def pass_key(prompt: str) -> Reading:
    """The last key, others those of worked examples."""
    keys = re.findall(r"The pass key is (\d+)\. Remember it\. \1 is the pass key\.", prompt)
    return Reading(keys[-1:], keys[:-1])


def magic(prompt: str) -> Reading:
    """All values of the keys that the question names."""
    needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.(?=\s)", prompt)
    asked = re.search(
        r"\nWhat (?:is|are all) the special magic \w+ for (.+) mentioned in the provided text\?",
        prompt,
    )
    keys = re.split(r", and |, ", asked[1])
    right = [value for key in keys for other, value in needles if other == key]
    return Reading(right, [value for key, value in needles if key not in keys])


def doors(prompt: str) -> Reading:
    """Free needles: what opens the doors that the question names."""
    first, second = re.search(r"\nWhat opens the (\w+) and the (\w+) door\?", prompt).groups()
    return Reading([re.search(_DOOR.format(door), prompt)[1] for door in (first, second)], [])


def chains(prompt: str) -> Reading:
    """The variables that come to hold the value, in the order of the text."""
    example, text = prompt.rsplit("Memorize and track", 1)
    (value,) = re.findall(r"Find all variables that are assigned the value (\d+) in", text)
    holds: dict[str, str] = {}
    for name, copied, number in re.findall(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))", text):
        holds[name] = holds[copied] if copied else number
    right = [name for name in holds if holds[name] == value]
    others = [name for name in holds if name not in right]
    return Reading(right, others + re.findall(r"VAR ([A-Z]+) =", example))


def common_words(prompt: str) -> Reading:
    """The words of the list that stand there most often.

    A wrong word is no part of the right ones nor they of it: substrings count as found.
    """
    text = prompt.rsplit("Below is a numbered list of words.", 1)[1]
    listed, asked = text.split("\n")[1:3]
    count = int(re.search(r"What are the (\d+) most common words", asked)[1])
    numbers = [int(number) for number in re.findall(r"(\d+)\. ", listed)]
    assert numbers == list(range(1, len(numbers) + 1))
    right, rest = _most_common(re.split(r" ?\d+\. ", listed)[1:], count)
    wrong = [word for word in rest if not any(common in word for common in right)]
    return Reading(right, wrong[:count])


def frequent_words(prompt: str) -> Reading:
    """The three coded words that stand there most often, the dots apart."""
    text = prompt.split("Find the three most frequently appeared coded words. ")[1]
    words = [word for word in text.split("\n")[0].split(" ") if word != "..."]
    right, rest = _most_common(words, 3)
    return Reading(right, rest[:3])


def _most_common(words: list[str], count: int) -> tuple[list[str], list[str]]:
    ranked = Counter(words).most_common()
    assert ranked[count - 1][1] > ranked[count][1], "which words are asked for is not clear"
    names = [word for word, _ in ranked]
    return names[:count], names[count:]


READERS = {
    "passkey": pass_key,
    "niah": magic,
    "needles": doors,
    "vt": chains,
    "cwe": common_words,
    "fwe": frequent_words,
}
"""By the module of the task."""
