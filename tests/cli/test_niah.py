"""`needlework niah`: its samples, answers and output, and errors of its options."""

import json
import shutil

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import TINY
from tokenizers import Tokenizer
from typer.testing import CliRunner

from needlework.cli.app import app
from needlework.cli.inline_experiment import parse_mapping
from needlework.cli.niah import _job, shorten
from needlework.config.attention.infini import Infini
from needlework.config.attention.registry import AnyAttention
from needlework.config.attention.window import Window
from needlework.config.models.checkpoint import Checkpoint
from needlework.config.opening import ModelSpec
from needlework.config.tasks.passkey import Passkey
from needlework.evaluation.generation.generate import generate_answers
from needlework.models.checkpoint import open_model, save_model
from needlework.models.convert import convert
from needlework.scoring.intervals import wilson
from needlework.tasks.generate import Sampler, make_samples

pytestmark = pytest.mark.slow


def _lines(*args: str) -> list[str]:
    done = CliRunner().invoke(app, ["niah", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.stdout
    return done.stdout.splitlines()


def test_samples_and_answers_equal_those_of_the_pipeline():
    # The window is too short for needles far from the end.
    window = "{type: window, recent_tokens: 200, sink_tokens: 4, block_size: 8, dense_layers: 0}"
    lines = _lines(
        *("--model", str(TINY), "--attention", window, "--context-length", "512"),
        *("--depth-percent", "10", "--depth-percent", "95", "--samples", "4"),
        *("--num-digits", "4", "--num-shots", "1", "--max-new-tokens", "6", "--seed", "7"),
    )
    sampler = Sampler(
        Passkey(digits=4, shots=1, max_new_tokens=6),
        Tokenizer.from_file(str(TINY / "tokenizer.json")),
        task_name="other",
        length=512,
        depths=[10, 95],
        seed=7,
    )
    table = make_samples(sampler, 4)
    attention = Window(recent_tokens=200, sink_tokens=4, block_size=8, dense_layers=0)
    answers, _, _ = generate_answers(
        *open_model(ModelSpec(path=TINY)), table, system="other", attention=attention
    )
    generations = [line.removeprefix("  generation: ") for line in lines if "generation: " in line]
    assert generations == [repr(answer) for answer in answers["prediction"]]
    right = [row["outputs"][0] in answer for row, answer in zip(
        table.iter_rows(named=True), answers["prediction"], strict=True
    )]  # fmt: skip
    correct = [line.removeprefix("  correct: ") for line in lines if line.startswith("  correct: ")]
    assert correct == ["yes" if is_right else "no" for is_right in right]
    assert 0 < sum(right) < 4
    low, high = wilson(sum(right) / 4, 4)
    assert lines[-1] == (
        f"accuracy: {25 * sum(right):.1f} % of 4 samples, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    )
    depths = pl.Series([line for line in lines if line.startswith("sample ")])
    assert depths.str.contains("needle at 10 %").sum() == 2
    assert depths.str.contains(f"{table['tokens'][0]} tokens").all()
    shown = [line for line in lines if line.startswith("  prompt: ")]
    for line, row in zip(shown, table.iter_rows(named=True), strict=True):
        assert f"The pass key is {row['outputs'][0]}." in line
        assert " characters ...] " in line
        assert line.endswith("The pass key is")


def test_a_checkpoint_with_infini_attention_keeps_its_own(tmp_path):
    plain = ("--attention", "infini", "--context-length", "300", "--samples", "1")
    untrained = f"note: {TINY} has no infini attention; it was applied untrained"
    assert _lines("--model", str(TINY), *plain)[-1] == untrained
    model, tokenizer = open_model(ModelSpec(path=TINY))
    save_model(convert(model, Infini(segment_length=64)), tokenizer, tmp_path / "infini")
    lines = _lines("--model", str(tmp_path / "infini"), *plain)
    assert lines[-1].startswith("accuracy: ")
    given = "{type: infini, segment_length: 32}"
    with pytest.raises(ValueError, match=r"has infini attention with its own parameters; write "):
        _lines("--model", str(tmp_path / "infini"), *plain, "--attention", given)


def test_model_and_task_accept_mappings(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    lines = _lines(
        *("--model", f"{{path: {tmp_path / 'model'}, dtype: bfloat16}}", "--samples", "1"),
        *("--task", "{type: niah, keys: 2, digits: 3}", "--context-length", "400"),
    )
    assert "One of the special magic numbers for" in lines[1]
    assert lines[-1].startswith("accuracy: ")


def test_the_job_opens_the_model_as_given():
    given = {"path": "m", "dtype": "bfloat16", "revision": "v1", "allow_pickle": True}
    given |= {"allow_extrapolation": True, "cache": "quantized", "prefill_chunk_tokens": 64}
    entry = Checkpoint(**given)
    job = _job(entry, Window(recent_tokens=9), 7)
    names = ("path", "dtype", "revision", "allow_pickle")
    assert [getattr(job.model, name) for name in names] == [given[name] for name in names]
    assert (job.model.opening.cache, job.model.opening.prefill_chunk_tokens) == ("quantized", 64)
    assert (job.allow_extrapolation, job.thinking_tokens) == (True, 7)
    assert TypeAdapter(AnyAttention).validate_python(job.attention) == Window(recent_tokens=9)
    assert _job(entry, None, 0).attention is None


@pytest.fixture
def changed(tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(TINY, tmp_path / "changed")


def test_infini_attention_extends_the_positions_of_the_model(changed):
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    given = ("--model", str(changed), "--context-length", "300", "--samples", "1")
    with pytest.raises(ValueError, match="positions"):
        _lines(*given)
    assert _lines(*given, "--attention", "infini")[-1].endswith("it was applied untrained")


def test_thinking_tokens_count_towards_the_context_length(changed):
    template = "{% if enable_thinking %}<think>{% endif %}"
    template += "{% for m in messages %}{{ m.content }}{% endfor %}"
    (changed / "chat_template.jinja").write_text(template)
    keys = f"path: {changed}, chat_template: true, thinking_tokens"
    args = ("--context-length", "400", "--samples", "1", "--max-new-tokens", "10")
    tokens = [
        int(_lines("--model", f"{{{keys}: {most}}}", *args)[0].split()[2]) for most in (0, 150)
    ]
    assert 360 < tokens[0] <= 390
    assert 210 < tokens[1] <= 240


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--attention", "{type: window, recent: 3}"), r"^--attention\.recent = 3"),
        (("--attention", "{type: infini, segment_length: 0}"), r"^--attention: segment_length = 0"),
        (("--attention", "{type: infini"), r"^--attention \{type: infini: not a mapping \("),
        (
            ("--context-length", "60"),
            r"^lengths: 60 is too small for task inline; write \d+ or more",
        ),
        (("--context-length", "99999"), r"^--context-length = 99999: exceeds .* in --model$"),
        (("--depth-percent", "101"), r"^depths.* = 101"),
        (("--num-digits", "0"), r"^tasks\.inline\.digits = 0: write a number of at least 1"),
        (
            ("--model", f"{{api: 'http://localhost:1/v1', model: m, tokenizer: {TINY}}}"),
            r"^--model: not a checkpoint",
        ),
    ],
)
def test_option_errors_are_one_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        _lines("--model", str(TINY), "--context-length", "300", "--samples", "1", *args)
    assert "\n" not in str(error.value)


def test_a_prompt_is_shortened_around_its_needle():
    prompt = "a" * 500 + "KEY" + "b" * 500
    text = shorten(prompt, "KEY")
    assert text == (
        f"{'a' * 100} [... 300 characters ...] {'a' * 100}KEY{'b' * 100} [... 300 characters ...] "
        + "b" * 100
    )
    near = shorten("KEY" + "b" * 500, "KEY")
    assert near == f"KEY{'b' * 100} [... 300 characters ...] {'b' * 100}"
    assert shorten("short KEY", "KEY") == shorten("short KEY", "no") == "short KEY"


def test_options_are_parsed_as_mappings():
    assert parse_mapping("--model", "a/b", "path") == {"path": "a/b"}
    assert parse_mapping("--model", " {path: a, tp: 2}", "path") == {"path": "a", "tp": 2}
