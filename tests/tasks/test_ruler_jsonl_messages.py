"""Task ruler_jsonl: conversations as prompts, and rows like those of OpenAI's MRCR."""

import json

import polars as pl
import pytest
from tasks.prompts.test_chat import PHI, save

from needlework.config.models.api import Api
from needlework.config.models.checkpoint import Checkpoint
from needlework.config.tasks.ruler_jsonl import RulerJsonl
from needlework.models.api.client import Endpoint
from needlework.scoring.score import score
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.preflight import chat_frame_of
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, SERVER_CHAT_FRAME
from needlework.tasks.prompts.tokenizer import open_tokenizer

TURNS = [
    {"role": "user", "content": "Write a poem about tapirs."},
    {"role": "assistant", "content": "A tapir walks."},
    {"role": "user", "content": "Prepend x7Qz to the first poem about tapirs."},
]
MRCR = {
    "prompt": json.dumps(TURNS),
    "answer": "x7QzA tapir walks.",
    "random_string_to_prepend": "x7Qz",
    "n_needles": 2,
    "total_messages": 3,
}
ROWS = {
    "text": MRCR,
    "list": {**MRCR, "prompt": TURNS},
    "messages": {"messages": TURNS, "outputs": [MRCR["answer"]], "required_prefix": "x7Qz"},
    "parts": {
        **MRCR,
        "prompt": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TURNS],
    },
}


def sampler(folder, row: dict, frame, suffix: str = ".jsonl", **settings) -> Sampler:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pl.DataFrame([row]).write_parquet(path)
    else:
        path.write_text(json.dumps(row) + "\n")
    task = RulerJsonl(
        **{"path": str(path), "match": "prefix_ratio", "max_new_tokens": 9, **settings}
    )
    tokenizer = open_tokenizer(str(folder))
    return Sampler(
        task, tokenizer, task_name="t", length=600, depths=[50.0], seed=1, chat_frame=frame
    )


def frame_of(folder, **settings):
    return chat_frame_of(Checkpoint(path=str(folder), chat_template=True, **settings))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_form_of_messages_gives_the_same_prompt(tmp_path, kind, suffix):
    folder = save(tmp_path, PHI)
    row = make_samples(sampler(folder, ROWS[kind], frame_of(folder), suffix), 1).row(0, named=True)
    user, answer, last = (message["content"] for message in TURNS)
    assert row["prompt"] == (
        f"<|user|>\n{user}<|end|>\n<|assistant|>\n{answer}<|end|>\n<|user|>\n{last}<|end|>\n"
        "<|assistant|>\n"
    )
    assert (row["context"], row["question"]) == (last, "")
    assert row["history"] == TURNS[:2]
    assert row["messages"] == TURNS
    assert row["outputs"] == [MRCR["answer"]]
    assert row["required_prefix"] == "x7Qz"
    assert row["tokens"] == len(open_tokenizer(str(folder)).encode(row["prompt"]))


def test_a_system_message_of_the_row_replaces_that_of_the_model(tmp_path):
    folder = save(tmp_path, PHI)
    frame = frame_of(folder, system_prompt="Be short.")
    plain = sampler(folder, ROWS["list"], frame).sample(0)
    assert plain["prompt"].startswith("<|system|>\nBe short.<|end|>\n<|user|>\n")
    own = {**MRCR, "prompt": [{"role": "system", "content": "Rhyme."}, *TURNS]}
    row = sampler(folder, own, frame).sample(0)
    assert row["prompt"].startswith("<|system|>\nRhyme.<|end|>\n<|user|>\n")
    assert "Be short." not in row["prompt"]


def test_a_last_message_of_the_assistant_begins_the_answer(tmp_path):
    folder = save(tmp_path, PHI)
    begun = {**MRCR, "prompt": [*TURNS, {"role": "assistant", "content": "x7Qz"}]}
    row = sampler(folder, begun, frame_of(folder)).sample(0)
    assert row["prompt"].endswith("tapirs.<|end|>\n<|assistant|>\nx7Qz")
    assert row["messages"][-1] == {"role": "assistant", "content": "x7Qz"}


def test_a_base_model_refuses_messages_in_one_line(tmp_path):
    folder = save(tmp_path, PHI)
    for frame in (
        NO_CHAT_FRAME,
        chat_frame_of(Api(api="http://x", model="m", endpoint="completions")),
    ):
        message = (
            r"^tasks\.t: .*rows\.jsonl: row 1 has messages, which need a chat model; write chat"
        )
        with pytest.raises(ValueError, match=message) as caught:
            sampler(folder, MRCR, frame)
        assert "\n" not in str(caught.value)
    one = {**MRCR, "prompt": TURNS[2:]}
    assert sampler(folder, one, NO_CHAT_FRAME).sample(0)["prompt"] == TURNS[2]["content"]


def test_a_server_gets_the_messages(tmp_path):
    folder = save(tmp_path, PHI)
    api = Api(api="http://x", model="m", system_prompt="Be short.")
    assert chat_frame_of(api) is SERVER_CHAT_FRAME
    row = sampler(folder, MRCR, SERVER_CHAT_FRAME).sample(0)
    system = {"role": "system", "content": "Be short."}
    assert Endpoint(api, None).request_body(row)["messages"] == [system, *TURNS]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"prompt": [*TURNS, TURNS[1], TURNS[1]]},
            ":1: the row has messages of user, assistant, user, assistant, assistant; end with one",
        ),
        ({"prompt": TURNS[1:2]}, ":1: the row has messages of assistant; end with one"),
        ({"prompt": [{"role": "user"}]}, r":1: messages\[0\]\.content is missing"),
        ({"prompt": [{"role": "user", "content": 7}]}, r":1: messages\[0\]\.content is 7"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r":1: messages\[0\]\.content has a part that is no text",
        ),
        ({"prompt": "Q?"}, ":1: no column input, or context and question, or messages; its"),
        ({"prompt": []}, ":1: no column input, or context and question, or messages; its"),
    ],
)
def test_messages_are_checked(tmp_path, changed, message):
    folder = save(tmp_path, PHI)
    with pytest.raises(ValueError, match=message) as caught:
        sampler(folder, {**MRCR, **changed}, frame_of(folder)).sample(0)
    assert "\n" not in str(caught.value)


def test_answers_are_scored_by_prefix_and_ratio(tmp_path):
    folder = save(tmp_path, PHI)
    samples = make_samples(sampler(folder, MRCR, frame_of(folder)), 1)
    texts = ["x7QzA tapir walks.", " \nx7QzA tapir talks.", "A tapir walks.", "x7Qz"]
    texts.append("<think>x7Qz or not</think>x7QzA tapir walks.")
    scores = [
        score(
            samples,
            samples.select("task", "length", "sample", system=pl.lit("s"), prediction=pl.lit(text)),
            RulerJsonl(path="x", match="prefix_ratio").metric,
            has_depths=False,
        )["prefix_ratio"][0]
        for text in texts
    ]
    # 2 x matching characters / characters of both, of "A tapir walks." and "A tapir talks.".
    assert scores == pytest.approx([1, 2 * 13 / 28, 0, 0, 1])
