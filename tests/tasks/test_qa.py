"""Question answering on small sets in the formats of SQuAD and HotpotQA."""

import json
import re

import pytest
from support.paths import DATA
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from needlework.config.tasks.qa import Qa1, Qa2, QuestionAnswering
from needlework.scoring.metrics import match_part
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.generate import Sampler, make_samples

pytestmark = pytest.mark.slow

SQUAD, HOTPOTQA = (
    Qa1(path=str(DATA / "squad-small.json")),
    Qa2(path=str(DATA / "hotpot-small.json")),
)
INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output"
    " any other words."
)
DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]


def make(task, tokenizer, *, length=2048, count=10, seed=1):
    sampler = Sampler(task, tokenizer, task_name="t", length=length, depths=DEPTHS, seed=seed)
    return make_samples(sampler, count)


def documents(prompt: str) -> list[str]:
    """The paragraphs of a prompt; checks the prompt's form."""
    given = r"The following are given documents\."
    form = rf"{INSTRUCTION}\n\n{given}\n\n(.*)\n\n{INSTRUCTION}\n\nQuestion: .+ Answer:"
    text = re.fullmatch(form, prompt, flags=re.DOTALL)[1]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", text)[1:]
    assert [int(number) for number in parts[::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[1::2]


def squad() -> tuple[dict, set]:
    """Paragraph, article's paragraphs and answers by question; and the set of all paragraphs."""
    questions, all_paragraphs = {}, set()
    for article in json.loads((DATA / "squad-small.json").read_text())["data"]:
        paragraphs = [part["context"] for part in article["paragraphs"]]
        all_paragraphs |= set(paragraphs)
        for part in article["paragraphs"]:
            for entry in part["qas"]:
                if not entry["is_impossible"]:
                    answers = {answer["text"] for answer in entry["answers"]}
                    questions[entry["question"]] = ([part["context"]], paragraphs, answers)
    return questions, all_paragraphs


def hotpotqa() -> tuple[dict, set]:
    questions, all_paragraphs = {}, set()
    for entry in json.loads((DATA / "hotpot-small.json").read_text()):
        own = {title: f"{title}\n{''.join(lines)}" for title, lines in entry["context"]}
        all_paragraphs |= set(own.values())
        gold = [own[title] for title in dict.fromkeys(t for t, _ in entry["supporting_facts"])]
        questions[entry["question"]] = (gold, list(own.values()), {entry["answer"]})
    return questions, all_paragraphs


@pytest.mark.parametrize(("task", "read"), [(SQUAD, squad), (HOTPOTQA, hotpotqa)])
def test_the_gold_paragraphs_answer_the_question(task, read, tokenizer):
    questions, all_paragraphs = read()
    for row in make(task, tokenizer).iter_rows(named=True):
        shown = documents(row["prompt"])
        question = row["question"].split("Question: ")[1]
        gold, own, answers = questions[question]
        assert set(row["outputs"]) == answers
        assert set(shown) <= all_paragraphs
        assert len(set(shown)) == len(shown)
        assert [shown.count(document) for document in gold] == [1] * len(gold)
        right = " ".join(document for document in shown if document in gold)
        assert match_part(right, row["outputs"]) == 1 or answers <= {"yes", "no"}
        # The question's own paragraphs are used before any other.
        assert set(shown) >= set(own) or set(shown) <= set(own)
        for needle, document in zip(row["needles"], gold, strict=True):
            place = shown.index(document)
            assert needle["key"] == f"Document {place + 1}"
            assert place == pytest.approx(needle["depth_percent"] / 100 * (len(shown) - 1), abs=1)
            start = tokenizer.encode(row["prompt"]).offsets[needle["token_position"]][0]
            assert row["prompt"][start:].lstrip().startswith(f"{needle['key']}:\n")


def test_answers_to_other_questions_are_wrong(byte_tokenizer):
    questions, _ = squad()
    wrong = 0
    for row in make(SQUAD, byte_tokenizer, count=20).iter_rows(named=True):
        question = row["question"].split("Question: ")[1]
        others = [answers for other, (*_, answers) in questions.items() if other != question]
        assert any(match_part(" ".join(answers), row["outputs"]) == 0 for answers in others)
        wrong += match_part(" ".join(others[0]), row["outputs"]) == 0
    assert wrong >= 18


@pytest.mark.parametrize("task", [SQUAD, HOTPOTQA])
def test_prompts_are_counted_right_and_full(task, tokenizer):
    for length in (1500, 4096):
        for row in make(task, tokenizer, length=length).iter_rows(named=True):
            assert row["tokens"] == len(prompt_tokenizer(tokenizer).encode(row["prompt"]))
            left = length - task.max_new_tokens - row["tokens"]
            # Less than a paragraph is left: only a few further paragraphs are tried.
            assert 0 <= left <= 250


def test_merging_line_breaks_are_counted_right():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    text = json.loads((DATA / "squad-small.json").read_text())["data"][0]["paragraphs"]
    tokenizer.train_from_iterator([f"{part['context']}\n\n\n" for part in text] * 3, trainer)
    assert "ĊĊ" in tokenizer.get_vocab()
    sampler = Sampler(SQUAD, tokenizer, task_name="t", length=3000, depths=DEPTHS, seed=1)
    assert sampler.is_additive
    for row in make_samples(sampler, 60).iter_rows(named=True):
        assert row["tokens"] == len(tokenizer.encode(row["prompt"]))


def test_gold_depths_and_questions_are_spread(byte_tokenizer):
    table = make(SQUAD, byte_tokenizer, count=120, length=1024)
    depths = [needles[0]["depth_percent"] for needles in table["needles"]]
    assert {depths.count(depth) for depth in DEPTHS} == {24}
    assert table["question"].n_unique() == 120
    assert (
        table["question"].to_list()
        != make(SQUAD, byte_tokenizer, count=120, length=1024, seed=2)["question"].to_list()
    )


@pytest.mark.parametrize("task", [SQUAD, HOTPOTQA])
def test_samples_do_not_depend_on_order(task, byte_tokenizer):
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=1600, depths=DEPTHS, seed=1)
    rows = [sampler.sample(index) for index in (7, 2, 5)]
    again = make(task, byte_tokenizer, length=1600, count=8).to_dicts()
    assert rows == [again[7], again[2], again[5]]


def test_a_length_beyond_the_content_names_the_largest(tokenizer):
    with pytest.raises(
        ValueError, match=r"90000 is more than the content of task t fills; write \d+ or less$"
    ) as error:
        make(SQUAD, tokenizer, length=90000)
    largest = int(str(error.value).split("write ")[1].split()[0])
    shown = documents(make(SQUAD, tokenizer, length=largest, count=1)["prompt"][0])
    # There are 60: the length is that of the whole set with the shortest question.
    assert len(shown) >= 59


def test_any_question_set_can_be_used(byte_tokenizer):
    task = QuestionAnswering(path=HOTPOTQA.path, format="hotpotqa")
    assert len(documents(make(task, byte_tokenizer)["prompt"][0])) > 3
