import pytest
from support.paths import TINY

from needlework.config.parsing.load import load_experiment
from needlework.reasoning.tags import CLOSING_TEXT
from needlework.tasks.haystacks.punkt import split
from needlework.tasks.preflight import preflight, sampler_of
from needlework.tasks.prompts.prompt import PLAIN, Frame
from needlework.tasks.prompts.tokenizer import open_tokenizer


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


def test_what_fits_passes():
    preflight(experiment())
    preflight(experiment(lengths=[9000], length_unit="characters"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lengths": [50, 1024]}, "lengths: 50 is too small for task needle; set "),
        ({"lengths": [1024, 400], "tasks": {"words": {"type": "cwe"}}}, "lengths: 400 is too sma"),
    ],
)
def test_a_length_that_cannot_be_is_told_before_any_work(changes, says):
    with pytest.raises(ValueError, match=rf"^{says}"):
        preflight(experiment(**changes))


def test_the_natural_end_is_told_before_any_work():
    config = {"tasks": {"words": {"type": "cwe"}}, "lengths": [400_000]}
    config["models"] = {"base": {"path": str(TINY), "allow_extrapolation": True}}
    with pytest.raises(ValueError, match="400000 is beyond the natural end of task words; set 1"):
        preflight(experiment(**config))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no text in it"), (b"Day.\xff", r"a.txt: not UTF-8 at byte 4; save it as UTF-8")],
)
def test_text_that_is_no_good_is_told_before_any_work(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        preflight(experiment(haystacks={"essay": {"path": str(tmp_path)}}))


def test_a_set_of_another_form_is_told_before_any_work(tmp_path):
    (tmp_path / "set.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"set\.json: .*wanted is SQuAD"):
        preflight(experiment(tasks={"qa": {"type": "qa_1", "path": str(tmp_path / "set.json")}}))


def test_samples_are_what_the_experiment_and_the_model_ask_for():
    tokenizer = open_tokenizer(str(TINY))
    wool = "The wool is spun by day, and by night it is wound. "
    task = {"type": "niah_single_1", "haystack": "mine"}
    asked = experiment(tasks={"needle": task}, haystacks={"mine": {"path": str(TINY)}})
    haystack = split([wool * 300], tokenizer, 1024)
    plain, thoughtful = (
        sampler_of(asked, "needle", 1024, tokenizer, framed, haystack).sample(0)
        for framed in ((PLAIN, 0), (Frame("Listen: ", " Go on.", None, False), 30))
    )
    assert plain["prompt"].count(wool.strip()) > 20
    assert thoughtful["prompt"].startswith("Listen: ")
    thought = 30 + len(tokenizer.encode(CLOSING_TEXT, add_special_tokens=False))
    assert thoughtful["max_new_tokens"] == plain["max_new_tokens"] + thought
    for sample in (plain, thoughtful):
        assert 800 < sample["tokens"] + sample["max_new_tokens"] <= 1024

    counted = experiment(lengths=[9000], length_unit="characters")
    long = sampler_of(counted, "needle", 9000, tokenizer, (PLAIN, 0)).sample(0)
    assert 8900 < len(long["prompt"]) <= 9000
