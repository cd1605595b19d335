"""Every registered task: it has a module, generates valid samples, and is documented."""

import json
from importlib import import_module
from typing import get_args

import pytest
from pydantic import TypeAdapter
from support.paths import DATA, ROOT, TINY

from needlework.config.tasks.base import Task
from needlework.config.tasks.registry import AnyTask
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

LENGTH, DEPTHS = 2048, [0.0, 50.0, 100.0]
TYPES = {cls.model_fields["type"].default: cls for cls in get_args(get_args(AnyTask)[0])}
REQUIRED = {
    "qa": {"path": str(DATA / "squad-small.json")},
    "qa_1": {"path": str(DATA / "squad-small.json")},
    "qa_2": {"path": str(DATA / "hotpot-small.json")},
    "ruler_jsonl": {"path": "samples.jsonl"},
    "needles": {
        "question": "What opens the red door?",
        "needles": [{"text": "The red door opens with a song.", "answer": "a song"}],
    },
}
"""Values of the parameters without a default, by type: add those of a new task here."""
SAMPLES = "".join(
    json.dumps({"index": i, "input": f"The key is {i}. What is the key?", "outputs": [str(i)]})
    + "\n"
    for i in range(3)
)


@pytest.fixture(params=TYPES)
def task(request: pytest.FixtureRequest, tmp_path, monkeypatch) -> Task:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples.jsonl").write_text(SAMPLES)
    parameters = {"type": request.param, **REQUIRED.get(request.param, {})}
    return TypeAdapter(AnyTask).validate_python(parameters)


def make_sampler(task: Task, **settings) -> Sampler:
    return Sampler(
        task,
        open_tokenizer(TINY),
        task_name="a_task",
        length=LENGTH,
        depths=DEPTHS,
        seed=1,
        **settings,
    )


def test_generates_valid_samples(task):
    table = make_samples(make_sampler(task), 3)
    for row in table.iter_rows(named=True):
        assert row["outputs"]
        assert all(output.strip() for output in row["outputs"])
        assert row["value_type"] == task.answer_type
        assert row["tokens"] + row["max_new_tokens"] <= LENGTH
        assert row["tokens"] == len(open_tokenizer(TINY).encode(row["prompt"]))
        if task.has_depths:
            assert row["needles"][0]["depth_percent"] in DEPTHS
    assert make_samples(make_sampler(task), 2).equals(table.head(2))


def test_training_rows_use_other_random_streams(task):
    evaluation, training = (make_sampler(task, training=flag).sample(0) for flag in (False, True))
    assert evaluation["seed"] != training["seed"]


@pytest.mark.parametrize("kind", TYPES)
def test_is_documented(kind):
    cls = TYPES[kind]
    assert cls.__doc__, f"{cls.__name__}: add a docstring; it becomes the task's reference"
    assert import_module(cls.module).prepare.__doc__, f"{cls.module}.prepare: add a docstring"
    reference = (ROOT / "config/README.md").read_text()
    assert f"`type: {kind}`" in reference, "run: needlework schema --markdown > config/README.md"
    schema = (ROOT / "config/experiment.schema.json").read_text()
    assert f'"{kind}"' in schema, "run: needlework schema > config/experiment.schema.json"
