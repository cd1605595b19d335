"""Reference readers: answer a prompt from its text alone, as a careful person would.

Each returns the right values, and the values that a reader who picks other keys would give.
"""

import re
from collections import Counter
from typing import NamedTuple

_DOOR = r"The {} door opens with ([^.]+)\."


class Reading(NamedTuple):
    right: list[str]
    wrong: list[str]
    """Empty if the prompt has no other keys."""


def read_pass_key(prompt: str) -> Reading:
    """The last key is right; keys of worked examples are wrong."""
    keys = re.findall(r"The pass key is (\d+)\. Remember it\. \1 is the pass key\.", prompt)
    return Reading(keys[-1:], keys[:-1])


def read_magic_values(prompt: str) -> Reading:
    """All values of the keys in the question are right."""
    needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.(?=\s)", prompt)
    question = re.search(
        r"\nWhat (?:is|are all) the special magic \w+ for (.+) mentioned in the provided text\?",
        prompt,
    )
    keys = re.split(r", and |, ", question[1])
    right = [value for key in keys for needle_key, value in needles if needle_key == key]
    return Reading(right, [value for key, value in needles if key not in keys])


def read_doors(prompt: str) -> Reading:
    """Free needles: what opens the doors in the question."""
    first, second = re.search(r"\nWhat opens the (\w+) and the (\w+) door\?", prompt).groups()
    return Reading([re.search(_DOOR.format(door), prompt)[1] for door in (first, second)], [])


def read_chains(prompt: str) -> Reading:
    """The variables that hold the queried value, in text order."""
    example, text = prompt.rsplit("Memorize and track", 1)
    (value,) = re.findall(r"Find all variables that are assigned the value (\d+) in", text)
    values: dict[str, str] = {}
    for name, copied, number in re.findall(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))", text):
        values[name] = values[copied] if copied else number
    right = [name for name in values if values[name] == value]
    others = [name for name in values if name not in right]
    return Reading(right, others + re.findall(r"VAR ([A-Z]+) =", example))


def read_common_words(prompt: str) -> Reading:
    """The most frequent words of the list.

    No wrong word contains a right one, because the metric counts substrings.
    """
    text = prompt.rsplit("Below is a numbered list of words.", 1)[1]
    word_list, question = text.split("\n")[1:3]
    count = int(re.search(r"What are the (\d+) most common words", question)[1])
    numbers = [int(number) for number in re.findall(r"(\d+)\. ", word_list)]
    assert numbers == list(range(1, len(numbers) + 1))
    right, rest = _most_common(re.split(r" ?\d+\. ", word_list)[1:], count)
    wrong = [word for word in rest if not any(common in word for common in right)]
    return Reading(right, wrong[:count])


def read_frequent_words(prompt: str) -> Reading:
    """The three most frequent coded words, without the dots."""
    text = prompt.split("Find the three most frequently appeared coded words. ")[1]
    words = [word for word in text.split("\n")[0].split(" ") if word != "..."]
    right, rest = _most_common(words, 3)
    return Reading(right, rest[:3])


def _most_common(words: list[str], count: int) -> tuple[list[str], list[str]]:
    ranked = Counter(words).most_common()
    assert ranked[count - 1][1] > ranked[count][1], "a tie makes the answer ambiguous"
    names = [word for word, _ in ranked]
    return names[:count], names[count:]


READERS = {
    "needlework.tasks.passkey": read_pass_key,
    "needlework.tasks.niah": read_magic_values,
    "needlework.tasks.needles": read_doors,
    "needlework.tasks.vt": read_chains,
    "needlework.tasks.cwe": read_common_words,
    "needlework.tasks.fwe": read_frequent_words,
}
"""By the task's module."""
