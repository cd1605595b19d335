"""Question sets: SQuAD (Rajpurkar et al., 2018) and HotpotQA (Yang et al., 2018), from JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_SQUAD = "SQuAD v2's JSON, such as dev-v2.0.json"
_HOTPOTQA = "HotpotQA's JSON with distractors, such as hotpot_dev_distractor_v1.json"
_KINDS = {list: "a list", dict: "an object", str: "text", bool: "true or false"}


class Question(NamedTuple):
    """A question, what answers it, and the documents it belongs to, by their place in the set."""

    question: str
    answers: tuple[str, ...]
    """Each of them is right."""
    gold: tuple[int, ...]
    """The documents that hold the answer: one of SQuAD, as a rule two of HotpotQA."""
    siblings: tuple[int, ...]
    """The others of the same article (SQuAD), or that come with the question (HotpotQA)."""


class QASet(NamedTuple):
    """Documents, sorted and each there once, and questions in the file's order."""

    documents: list[str]
    questions: list[Question]


def read_squad(path: str | Path) -> QASet:
    """The answerable questions of a SQuAD file; every paragraph is a document.

    Raises:
        ValueError: the file is not there, is not SQuAD's JSON, or has no answerable question.
    """
    top = _Found(path, _load(path, _SQUAD), "", _SQUAD)
    found, documents = [], {}
    for article in top.get("data", list).each(dict):
        paragraphs = list(article.get("paragraphs", list).each(dict))
        contexts = [paragraph.get("context", str).value.strip() for paragraph in paragraphs]
        documents.update(dict.fromkeys(contexts))
        for paragraph, context in zip(paragraphs, contexts, strict=True):
            for asked in paragraph.get("qas", list).each(dict):
                # SQuAD 1.1 has no such key: all of its questions have an answer.
                if "is_impossible" in asked.value and asked.get("is_impossible", bool).value:
                    continue
                answers = [a.text("text") for a in asked.get("answers", list).each(dict)]
                if not answers:
                    raise asked.error("an answerable question without answers")
                found.append((asked.text("question"), answers, [context], contexts))
    return _set(path, list(documents), found)


def read_hotpotqa(path: str | Path) -> QASet:
    """The questions of a HotpotQA file; a document is a paragraph under its title.

    Raises:
        ValueError: the file is not there, is not HotpotQA's JSON, or the supporting paragraphs of a
            question are not among its own.
    """
    top = _Found(path, _load(path, _HOTPOTQA), "", _HOTPOTQA)
    found, documents = [], {}
    for asked in top.expect(list).each(dict):
        context = {}
        for entry in asked.get("context", list).each(list):
            title = entry.get(0, str).value
            lines = [line.value for line in entry.get(1, list).each(str)]
            context[title] = f"{title}\n{''.join(lines)}".strip()
        documents.update(dict.fromkeys(context.values()))
        facts = asked.get("supporting_facts", list).each(list)
        titles = dict.fromkeys(fact.get(0, str).value for fact in facts)
        gold = [context[title] for title in titles if title in context]
        if not gold:
            raise asked.error("no paragraph of its context that supporting_facts names")
        found.append((asked.text("question"), [asked.text("answer")], gold, context.values()))
    return _set(path, list(documents), found)


def _set(path: str | Path, documents: list[str], found: list[tuple]) -> QASet:
    if not found:
        raise ValueError(f"{path}: no question that has an answer; name another file")
    documents.sort()
    place = {document: i for i, document in enumerate(documents)}
    questions = [
        Question(
            question,
            tuple(dict.fromkeys(answers)),
            tuple(dict.fromkeys(place[text] for text in gold)),
            tuple(dict.fromkeys(place[text] for text in context if text not in gold)),
        )
        for question, answers, gold, context in found
    ]
    return QASet(documents, questions)


def _load(path: str | Path, wanted: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; name {wanted}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; name {wanted}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}; name {wanted}") from None


class _Found(NamedTuple):
    """A value of a JSON file, with where it stands for errors."""

    path: str | Path
    value: Any
    where: str
    wanted: str

    def error(self, found: str) -> ValueError:
        """One line: the file, the place in it, what was found there, what the file should be."""
        where = self.where.lstrip(".") or "the whole"
        return ValueError(f"{self.path}: {where}: {found}; wanted is {self.wanted}")

    def expect(self, kind: type) -> "_Found":
        """This value, if it is of a kind."""
        if not isinstance(self.value, kind):
            raise self.error(f"{str(self.value)!r:.40} instead of {_KINDS[kind]}")
        return self

    def get(self, key: str | int, kind: type) -> "_Found":
        """The value of an object's key or at a list's place, if it is of a kind."""
        try:
            value = self.expect(dict if isinstance(key, str) else list).value[key]
        except (KeyError, IndexError):
            raise self.error(f"no {key!r}") from None
        where = f"{self.where}.{key}" if isinstance(key, str) else f"{self.where}[{key}]"
        return self._replace(value=value, where=where).expect(kind)

    def text(self, key: str) -> str:
        """The text of an object's key, stripped; an empty one is an error."""
        found = self.get(key, str)
        if not found.value.strip():
            raise found.error("empty text")
        return found.value.strip()

    def each(self, kind: type) -> Iterator["_Found"]:
        """The values of a list, if each is of a kind."""
        for i, value in enumerate(self.value):
            yield self._replace(value=value, where=f"{self.where}[{i}]").expect(kind)
