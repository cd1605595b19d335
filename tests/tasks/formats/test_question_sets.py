"""Question sets: read as RULER reads them, each fault one line."""

import json
from pathlib import Path

import pytest
from support.paths import DATA

from needlework.tasks.formats.question_sets import read_hotpotqa, read_squad

SQUAD, HOTPOTQA = DATA / "squad-small.json", DATA / "hotpot-small.json"


def test_squad_is_read_as_ruler_reads_it():
    articles = json.loads(SQUAD.read_text())["data"]
    contexts = {p["context"] for article in articles for p in article["paragraphs"]}
    found = read_squad(SQUAD)
    assert found.documents == sorted(contexts)
    asked = [
        (question, paragraph, article)
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if not question["is_impossible"]
    ]
    assert len(asked) == len(found.questions) == 120
    for (question, paragraph, article), read in zip(asked, found.questions, strict=True):
        assert read.question == question["question"]
        assert set(read.answers) == {answer["text"] for answer in question["answers"]}
        assert read.answers[0] == question["answers"][0]["text"]
        assert len(set(read.answers)) == len(read.answers)
        assert [found.documents[i] for i in read.gold] == [paragraph["context"]]
        others = [p["context"] for p in article["paragraphs"] if p is not paragraph]
        assert [found.documents[i] for i in read.siblings] == others


def test_hotpotqa_is_read_as_ruler_reads_it():
    rows = json.loads(HOTPOTQA.read_text())
    found = read_hotpotqa(HOTPOTQA)
    documents = {f"{t}\n{''.join(p)}" for row in rows for t, p in row["context"]}
    assert found.documents == sorted(documents)
    assert len(found.questions) == len(rows) == 31
    for row, read in zip(rows, found.questions, strict=True):
        assert read.question == row["question"]
        assert read.answers == (row["answer"],)
        titles = [found.documents[i].split("\n")[0] for i in read.gold]
        assert titles == list(dict.fromkeys(title for title, _ in row["supporting_facts"]))
        together = {found.documents[i] for i in (*read.gold, *read.siblings)}
        assert together == {f"{t}\n{''.join(p)}" for t, p in row["context"]}
        assert len(read.gold) + len(read.siblings) == len(row["context"]) == 10


def test_the_small_sets_can_be_answered():
    for found in (read_squad(SQUAD), read_hotpotqa(HOTPOTQA)):
        for question in found.questions:
            gold = " ".join(found.documents[i] for i in question.gold).lower()
            assert question.answers[0] in ("yes", "no") or question.answers[0].lower() in gold
        words = [len(document.split()) for document in found.documents]
        assert min(words) > 38
        assert max(words) < 92


def squad(*paragraphs: dict) -> dict:
    return {"data": [{"title": "T", "paragraphs": list(paragraphs)}]}


def paragraph(context: str, **question) -> dict:
    return {"context": context, "qas": [{"question": "Q?", "answers": [{"text": "A"}], **question}]}


def test_equal_and_padded_paragraphs_are_one_document(tmp_path: Path):
    content = squad(paragraph(" A b. "), paragraph("A b."), paragraph("C."))
    (path := tmp_path / "squad.json").write_text(json.dumps(content))
    found = read_squad(path)
    assert found.documents == ["A b.", "C."]
    assert [(q.gold, q.siblings) for q in found.questions] == [
        ((0,), (1,)),
        ((0,), (1,)),
        ((1,), (0,)),
    ]


def test_answers_are_there_once(tmp_path: Path):
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
        (read_squad, None, "no such file; name SQuAD"),
        (read_squad, "[1,\n2", "2: not JSON: "),
        (read_squad, hotpot(), "the whole: \"[{'question': 'Q?'"),
        (read_squad, {"rows": []}, "the whole: no 'data'; wanted is SQuAD v2's JSON"),
        (read_squad, {"data": {}}, "data: '{}' instead of a list; wanted is SQuAD"),
        (read_squad, {"data": []}, "no question that has an answer; name another file"),
        (read_squad, squad({"qas": []}), "data[0].paragraphs[0]: no 'context'; wanted"),
        (
            read_squad,
            squad(paragraph("a", answers=[])),
            "data[0].paragraphs[0].qas[0]: an answerable question without answers; wanted",
        ),
        (
            read_squad,
            squad(paragraph("a", answers=[{"text": " "}])),
            "data[0].paragraphs[0].qas[0].answers[0].text: empty text; wanted",
        ),
        (
            read_squad,
            squad(paragraph("a", is_impossible="no")),
            "data[0].paragraphs[0].qas[0].is_impossible: 'no' instead of true or false; wanted",
        ),
        (
            read_squad,
            squad(paragraph("a", is_impossible=True)),
            "no question that has an answer; name another file",
        ),
        (read_hotpotqa, squad(), "the whole: \"{'data': "),
        (read_hotpotqa, [], "no question that has an answer; name another file"),
        (read_hotpotqa, hotpot(answer=3), "[0].answer: '3' instead of text; wanted is HotpotQA"),
        (read_hotpotqa, hotpot(context=[["T"]]), "[0].context[0]: no 1; wanted is HotpotQA"),
        (
            read_hotpotqa,
            hotpot(context={"title": ["T"], "sentences": [["A."]]}),
            "[0].context: \"{'title': ['T'], 'sentences':",
        ),
        (
            read_hotpotqa,
            hotpot(supporting_facts=[["U", 0]]),
            "[0]: no paragraph of its context that supporting_facts names; wanted is HotpotQA's",
        ),
    ],
)
def test_a_fault_is_one_line(read, content, message: str, tmp_path: Path):
    path = tmp_path / "set.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"set\.json") as caught:
        read(path)
    assert str(caught.value).removeprefix(str(path)).lstrip(": ").startswith(message)
    assert "\n" not in str(caught.value)
