"""Read the question sets SQuAD (Rajpurkar et al., 2018) and HotpotQA (Yang et al., 2018).

Files are the original JSON, or the hub's rows in JSON, JSON lines or Parquet, also compressed.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from needlework.config.base import Text
from needlework.sources.records import Record, read_records, require_columns
from needlework.tasks.formats.validation_errors import describe_error

_SQUAD = "write the path of SQuAD v2's JSON, such as dev-v2.0.json"
_HOTPOTQA = (
    "write the path of HotpotQA's JSON with distractors, such as hotpot_dev_distractor_v1.json"
)


_SQUAD_COLUMNS = ("context", "question", "answers")
_HOTPOT_COLUMNS = ("question", "answer", "supporting_facts", "context")


class Question(NamedTuple):
    """A question with its answers and documents; documents are indices into the set."""

    question: str
    answers: tuple[str, ...]
    """Alternative right answers."""
    gold: tuple[int, ...]
    """Documents that contain the answer: one in SQuAD, usually two in HotpotQA."""
    siblings: tuple[int, ...]
    """Other documents of the same article (SQuAD) or of the same question (HotpotQA)."""


class QuestionSet(NamedTuple):
    """Distinct documents, sorted, and questions in file order."""

    documents: list[str]
    questions: list[Question]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


_Stripped = Annotated[str, StringConstraints(strip_whitespace=True)]
_NonBlank = Annotated[Text, AfterValidator(str.strip)]


class _SquadAnswer(_Entry):
    text: _NonBlank


class _SquadQuestion(_Entry):
    question: _Stripped = ""
    answers: list[_SquadAnswer] = []
    is_impossible: bool = False
    """SQuAD 1.1 lacks this key: all of its questions have answers."""

    @model_validator(mode="after")
    def _is_answerable(self) -> Self:
        if not self.is_impossible and not self.question:
            raise ValueError("has no question")
        if not self.is_impossible and not self.answers:
            raise ValueError("has no answers although is_impossible is not true")
        return self


class _SquadParagraph(_Entry):
    context: _Stripped
    qas: list[_SquadQuestion]


class _SquadArticle(_Entry):
    paragraphs: list[_SquadParagraph]


class _Squad(_Entry):
    data: list[_SquadArticle]


class _HotpotQuestion(_Entry):
    question: _NonBlank
    answer: _NonBlank
    supporting_facts: list[tuple[str, int]]
    """Titles, and the numbers of sentences."""
    context: list[tuple[str, list[str]]]
    """Titles, and the sentences of each paragraph."""

    @property
    def paragraphs(self) -> dict[str, str]:
        """Paragraphs with their title as first line, by title."""
        return {title: f"{title}\n{''.join(lines)}".strip() for title, lines in self.context}

    @property
    def gold(self) -> list[str]:
        """The paragraphs that hold the answer."""
        paragraphs = self.paragraphs
        titles = dict.fromkeys(title for title, _ in self.supporting_facts)
        return [paragraphs[title] for title in titles if title in paragraphs]

    @model_validator(mode="after")
    def _has_gold(self) -> Self:
        if not self.gold:
            raise ValueError("has no paragraph in context that supporting_facts names")
        return self


def _zipped(value: object, *names: str) -> object:
    """A dictionary of lists, as the hub has it, as the original's list of tuples."""
    if not isinstance(value, dict) or not all(isinstance(value.get(n), list) for n in names):
        return value
    return list(zip(*(value[name] for name in names), strict=False))


def _hotpot_of_records(records: list[Record]) -> object:
    """The rows as the original file has them, whose lists of pairs the hub's rows have in two."""
    rows = []
    for record in records:
        require_columns(record, _HOTPOT_COLUMNS)
        row = dict(record.values)
        for name, other in (("supporting_facts", "sent_id"), ("context", "sentences")):
            row[name] = _zipped(row[name], "title", other)
        rows.append(row)
    return rows


def _squad_of_records(records: list[Record]) -> object:
    """The original file, also of the hub's rows, which have one question each."""
    require_columns(records[0], ("data",), _SQUAD_COLUMNS)
    if "data" in records[0].values:
        return records[0].values
    articles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        require_columns(record, _SQUAD_COLUMNS)
        row = record.values
        answers = row["answers"]
        texts = answers.get("text", []) if isinstance(answers, dict) else answers
        question = {
            "question": row["question"],
            "answers": [{"text": text} for text in texts],
            "is_impossible": not texts,
        }
        paragraphs = articles.setdefault(str(row.get("title")), {})
        paragraphs.setdefault(row["context"], []).append(question)
    return {
        "data": [
            {"paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs.items()]}
            for paragraphs in articles.values()
        ]
    }


_SQUAD_FILE = TypeAdapter(_Squad)
_HOTPOT_FILE = TypeAdapter(list[_HotpotQuestion])


def read_squad(path: str | Path) -> QuestionSet:
    """Read the answerable questions of a SQuAD file; every paragraph is a document.

    Raises:
        ValueError: the file is missing, is not SQuAD's JSON, or has no answerable question.
    """
    squad = _read(path, _SQUAD_FILE, _squad_of_records, _SQUAD)
    documents: dict[str, None] = {}
    questions = []
    for article in squad.data:
        contexts = [paragraph.context for paragraph in article.paragraphs]
        documents.update(dict.fromkeys(contexts))
        for paragraph in article.paragraphs:
            for entry in paragraph.qas:
                if not entry.is_impossible:
                    answers = [answer.text for answer in entry.answers]
                    questions.append((entry.question, answers, [paragraph.context], contexts))
    return _question_set(path, documents, questions)


def read_hotpotqa(path: str | Path) -> QuestionSet:
    """Read the questions of a HotpotQA file; a document is a paragraph under its title.

    Raises:
        ValueError: the file is missing, is not HotpotQA's JSON, or a question's supporting
            paragraphs are not in its context.
    """
    documents: dict[str, None] = {}
    questions = []
    for entry in _read(path, _HOTPOT_FILE, _hotpot_of_records, _HOTPOTQA):
        paragraphs = list(entry.paragraphs.values())
        documents.update(dict.fromkeys(paragraphs))
        questions.append((entry.question, [entry.answer], entry.gold, paragraphs))
    return _question_set(path, documents, questions)


def _question_set(
    path: str | Path,
    documents: Iterable[str],
    questions: list[tuple[str, list[str], list[str], list[str]]],
) -> QuestionSet:
    """Replace the documents of `questions` (question, answers, gold, all) by their indices."""
    if not questions:
        raise ValueError(f"{path}: no question has an answer; write the path of another file")
    ordered = sorted(documents)
    index = {document: i for i, document in enumerate(ordered)}
    return QuestionSet(
        ordered,
        [
            Question(
                question,
                tuple(dict.fromkeys(answers)),
                tuple(dict.fromkeys(index[text] for text in gold)),
                tuple(dict.fromkeys(index[text] for text in texts if text not in gold)),
            )
            for question, answers, gold, texts in questions
        ],
    )


_T = TypeVar("_T")


def _read(
    path: str | Path,
    adapter: TypeAdapter[_T],
    original: Callable[[list[Record]], object],
    expected: str,
) -> _T:
    records = read_records(path, expected)
    try:
        content = original(records)
    except ValueError as error:
        raise ValueError(f"{error}; {expected}") from None
    try:
        # As JSON, whose arrays strict validation reads as tuples.
        return adapter.validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error, 'the file')}; {expected}") from None
