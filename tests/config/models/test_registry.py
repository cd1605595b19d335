"""Every model source answers what the workflow asks of a model."""

import inspect

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from support.paths import TINY

from needlework.config.models.base import LocalModel, Model, TrainedModel
from needlework.config.models.registry import MODEL_SOURCES, AnyModel
from needlework.config.opening import ModelSpec

ENTRIES = {
    "api": "{api: 'http://127.0.0.1:9/v1', model: m, tokenizer: base}",
    "base": "{base: base, finetune: {data: rows, steps: 1, sequence_length: 64}}",
    "path": f"{{path: '{TINY}', dtype: bfloat16, chat_template: true, thinking_tokens: 9}}",
    "pretrain": "{pretrain: {stages: [{length: 64, rows: 1, steps: 3, exercises: [recall]}]}}",
}


def entry(source: str) -> Model:
    return TypeAdapter(AnyModel).validate_python(yaml.safe_load(ENTRIES[source]))


def test_every_source_has_an_entry_here():
    assert [cls.source for cls in MODEL_SOURCES] == list(ENTRIES)


@pytest.mark.parametrize("cls", MODEL_SOURCES, ids=lambda cls: cls.source)
def test_every_source_answers_every_question(cls: type[Model]):
    model = entry(cls.source)
    assert type(model) is cls
    kind = LocalModel if model.local else Model
    for name, attribute in inspect.getmembers(kind):
        if isinstance(attribute, property) and not name.startswith(("_", "model_")):
            getattr(model, name)
    assert list(model.problems()) == [] or cls.source == "path"
    assert (model.local is None) != (model.remote is None)
    assert (model.local or model.remote) is model
    assert model.trained in (None, model)
    # What a run makes does not exist before it.
    assert model.made_by is None or (model.tokenizer_source is None and model.files == [])
    if model.local is not None:
        spec = model.local.spec("made/here")
        assert ModelSpec.model_validate(spec.dump()) == spec
        assert spec.path == (model.local.weights_path or "made/here")
        assert model.parent is not None or model.local.config_module is not None


def test_a_source_that_leaves_a_question_open_cannot_be_built():
    class Incomplete(TrainedModel):
        """Not registered, as it has no `source`."""

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()


@pytest.mark.parametrize("keys", [{}, {"path": "a", "base": "b"}], ids=["none", "two"])
def test_an_entry_has_exactly_one_source(keys: dict[str, str]):
    with pytest.raises(ValidationError, match="write exactly one of `api`, `base`, `path`, `pre"):
        TypeAdapter(AnyModel).validate_python(keys)


def test_the_stages_of_a_training_are_those_of_its_recipe():
    assert [stage.steps for stage in entry("pretrain").trained.stages] == [3]
    assert [stage.steps for stage in entry("base").trained.stages] == [1]
    assert entry("path").chat.thinking_tokens == 9
