"""Question sets: read as RULER reads them; errors take one line."""

import json
from pathlib import Path

import pytest
from support.paths import DATA

from needlework.tasks.formats.question_sets import read_hotpotqa, read_squad

SQUAD, HOTPOTQA = DATA / "squad-small.json", DATA / "hotpot-small.json"


def test_squad_matches_rulers_reading():
    articles = json.loads(SQUAD.read_text())["data"]
    contexts = {p["context"] for article in articles for p in article["paragraphs"]}
    loaded = read_squad(SQUAD)
    assert loaded.documents == sorted(contexts)
    expected = [
        (question, paragraph, article)
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if not question["is_impossible"]
    ]
    assert len(expected) == len(loaded.questions) == 120
    for (question, paragraph, article), read in zip(expected, loaded.questions, strict=True):
        assert read.question == question["question"]
        assert set(read.answers) == {answer["text"] for answer in question["answers"]}
        assert read.answers[0] == question["answers"][0]["text"]
        assert len(set(read.answers)) == len(read.answers)
        assert [loaded.documents[i] for i in read.gold] == [paragraph["context"]]
        others = [p["context"] for p in article["paragraphs"] if p is not paragraph]
        assert [loaded.documents[i] for i in read.siblings] == others


def test_hotpotqa_matches_rulers_reading():
    rows = json.loads(HOTPOTQA.read_text())
    loaded = read_hotpotqa(HOTPOTQA)
    documents = {f"{t}\n{''.join(p)}" for row in rows for t, p in row["context"]}
    assert loaded.documents == sorted(documents)
    assert len(loaded.questions) == len(rows) == 31
    for row, read in zip(rows, loaded.questions, strict=True):
        assert read.question == row["question"]
        assert read.answers == (row["answer"],)
        titles = [loaded.documents[i].split("\n")[0] for i in read.gold]
        assert titles == list(dict.fromkeys(title for title, _ in row["supporting_facts"]))
        together = {loaded.documents[i] for i in (*read.gold, *read.siblings)}
        assert together == {f"{t}\n{''.join(p)}" for t, p in row["context"]}
        assert len(read.gold) + len(read.siblings) == len(row["context"]) == 10


def test_test_sets_are_answerable():
    for loaded in (read_squad(SQUAD), read_hotpotqa(HOTPOTQA)):
        for question in loaded.questions:
            gold = " ".join(loaded.documents[i] for i in question.gold).lower()
            assert question.answers[0] in ("yes", "no") or question.answers[0].lower() in gold
        words = [len(document.split()) for document in loaded.documents]
        assert min(words) > 38
        assert max(words) < 92


def squad(*paragraphs: dict) -> dict:
    return {"data": [{"title": "T", "paragraphs": list(paragraphs)}]}


def paragraph(context: str, **question) -> dict:
    return {"context": context, "qas": [{"question": "Q?", "answers": [{"text": "A"}], **question}]}


def test_equal_paragraphs_are_one_document_regardless_of_padding(tmp_path: Path):
    content = squad(paragraph(" A b. "), paragraph("A b."), paragraph("C."))
    (path := tmp_path / "squad.json").write_text(json.dumps(content))
    loaded = read_squad(path)
    assert loaded.documents == ["A b.", "C."]
    assert [(q.gold, q.siblings) for q in loaded.questions] == [
        ((0,), (1,)),
        ((0,), (1,)),
        ((1,), (0,)),
    ]


def test_answers_are_distinct(tmp_path: Path):
    answers = [{"text": text} for text in ("b", " a", "b ", "a", "c")]
    (path := tmp_path / "squad.json").write_text(json.dumps(squad(paragraph("x", answers=answers))))
    assert read_squad(path).questions[0].answers == ("b", "a", "c")


def hotpot(**row) -> list[dict]:
    return [
        {
            "question": "Q?",
            "answer": "A",
            "supporting_facts": [["T", 0]],
            "context": [["T", ["A."]]],
            **row,
        }
    ]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (
            read_squad,
            None,
            "no such file; write the path of SQuAD v2's JSON, such as dev-v2.0.json",
        ),
        (read_squad, "[1,\n2", "not JSON: EOF while parsing a list at line 2 column 1; write"),
        (
            read_squad,
            hotpot(),
            "row 1: no column data, or context and question and answers; its col",
        ),
        (
            read_squad,
            {"rows": []},
            "row 1: no column data, or context and question and answers; its columns are rows; wri",
        ),
        (read_squad, {"data": {}}, "data is {}; it should be a valid array; write the path of"),
        (read_squad, {"data": []}, "no question has an answer; write the path of another file"),
        (read_squad, squad({"qas": []}), "data[0].paragraphs[0].context is missing; write the"),
        (
            read_squad,
            squad(paragraph("a", answers=[])),
            "data[0].paragraphs[0].qas[0] has no answers although is_impossible is not true; write",
        ),
        (
            read_squad,
            squad(paragraph("a", question=" ")),
            "data[0].paragraphs[0].qas[0] has no question; write",
        ),
        (
            read_squad,
            squad(paragraph("a", answers=[{"text": " "}])),
            "data[0].paragraphs[0].qas[0].answers[0].text is blank; write some text; write the",
        ),
        (
            read_squad,
            squad(paragraph("a", is_impossible="no")),
            "data[0].paragraphs[0].qas[0].is_impossible is 'no'; it should be a valid boolean; wr",
        ),
        (
            read_squad,
            squad(paragraph("a", is_impossible=True)),
            "no question has an answer; write the path of another file",
        ),
        (
            read_hotpotqa,
            squad(),
            "row 1: no column question and answer and supporting_facts and conte",
        ),
        (read_hotpotqa, [], "empty; write the path of HotpotQA's JSON with distractors"),
        (read_hotpotqa, hotpot(answer=3), "[0].answer is 3; it should be a valid string; write"),
        (read_hotpotqa, hotpot(context=[["T"]]), "[0].context[0][1] is missing; write the path of"),
        (
            read_hotpotqa,
            hotpot(context={"title": ["T"]}),
            "[0].context is {'title': ['T']}",
        ),
        (
            read_hotpotqa,
            hotpot(supporting_facts=[["U", 0]]),
            "[0] has no paragraph in context that supporting_facts names; write the path of Hotp",
        ),
    ],
)
def test_an_invalid_file_gives_a_one_line_error(read, content, message: str, tmp_path: Path):
    path = tmp_path / "set.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"set\.json") as caught:
        read(path)
    assert str(caught.value).removeprefix(str(path)).lstrip(": ").startswith(message)
    assert "\n" not in str(caught.value)
