"""Preflight: invalid lengths and files are found before any work."""

import pytest
from support.paths import TINY

from needlework.config.parsing.load import load_experiment
from needlework.reasoning.formats import THINK
from needlework.tasks.haystacks.punkt import sentence_table
from needlework.tasks.preflight import make_sampler, preflight
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow


def experiment(**changes):
    config = {
        "experiment": "trial",
        "models": {"base": {"path": str(TINY)}},
        "systems": {"dense": {"model": "base"}},
        "tasks": {"needle": {"type": "niah_single_1"}, "words": {"type": "cwe"}},
        "lengths": [1024, 2048],
        "samples": 2,
    }
    return load_experiment(config | changes)


def test_a_valid_experiment_passes():
    preflight(experiment())
    preflight(experiment(lengths=[9000], length_unit="characters"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [50, 1024]}, "lengths: 50 is too small for task needle; write "),
        ({"lengths": [1024, 400], "tasks": {"words": {"type": "cwe"}}}, "lengths: 400 is too sma"),
    ],
)
def test_a_length_that_is_too_small_is_rejected(changes, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        preflight(experiment(**changes))


def test_a_length_beyond_the_content_is_rejected():
    config = {"tasks": {"words": {"type": "cwe"}}, "lengths": [400_000]}
    config["models"] = {"base": {"path": str(TINY), "allow_extrapolation": True}}
    with pytest.raises(ValueError, match="400000 is more than the content of task words fills; wr"):
        preflight(experiment(**config))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "contains no text"), (b"Day.\xff", r"a.txt: not UTF-8 at byte 4; save it as UTF-8")],
)
def test_an_invalid_haystack_text_is_rejected(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        preflight(experiment(haystacks={"essay": {"path": str(tmp_path)}}))


def test_a_question_set_of_another_format_is_rejected(tmp_path):
    (tmp_path / "set.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"set\.json: row 1: no column data, or context and"):
        preflight(experiment(tasks={"qa": {"type": "qa_1", "path": str(tmp_path / "set.json")}}))


def test_sampler_follows_the_experiment_and_the_model():
    tokenizer = open_tokenizer(str(TINY))
    wool = "The wool is spun by day, and by night it is wound. "
    task = {"type": "niah_single_1", "haystack": "mine"}
    with_haystack = experiment(tasks={"needle": task}, haystacks={"mine": {"path": str(TINY)}})
    haystack = sentence_table([wool * 300], tokenizer, 1024)
    plain, thinking = (
        make_sampler(with_haystack, "needle", 1024, tokenizer, *chat, haystack).sample(0)
        for chat in ((NO_CHAT_FRAME, 0), (ChatFrame("Listen: ", " Go on.", None, False), 30))
    )
    assert plain["prompt"].count(wool.strip()) > 20
    assert thinking["prompt"].startswith("Listen: ")
    thinking_room = 30 + len(tokenizer.encode(THINK.closing_text, add_special_tokens=False))
    assert thinking["max_new_tokens"] == plain["max_new_tokens"] + thinking_room
    for sample in (plain, thinking):
        assert 800 < sample["tokens"] + sample["max_new_tokens"] <= 1024

    in_characters = experiment(lengths=[9000], length_unit="characters")
    long = make_sampler(in_characters, "needle", 9000, tokenizer, NO_CHAT_FRAME).sample(0)
    assert 8900 < len(long["prompt"]) <= 9000
