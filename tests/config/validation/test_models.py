import pytest
from support.experiment_file import EXPERIMENT, case, check_error, error_of, read

from needlework.config.parsing.load import read_experiment


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "path: checkpoint}",
            "path: checkpoint, chat_template: true}",
            "models.base.chat_template = True: has no template:",
        ),
        case(
            "path: checkpoint}",
            "path: checkpoint, thinking_tokens: 9}",
            "models.base.thinking_tokens = 9: needs a chat template;",
        ),
        case(
            "    base: base\n    allow",
            "    base: bas\n    allow",
            "models.long.base = 'bas': unknown model; did you mean `base`? write one of base,",
        ),
        case(
            "samples: 6",
            "samples: 6\npackage: base",
            "package = 'base': is not a pretrained model; none is defined",
        ),
        case(
            "path: checkpoint",
            "path: ./chekpoint",
            "models.base.path = './chekpoint': no such folder; name an existing one, or owner/name",
        ),
        case(
            "path: checkpoint",
            "path: .",
            "models.base.path = '.': has no config.json; name a Hugging Face",
        ),
        case(
            "path: checkpoint",
            "path: checkpoint, base: long",
            "models.base: write exactly one of `api`, `base`, `path`",
        ),
        case(
            "{path: checkpoint}",
            "{dtype: float32}",
            "models.base: write exactly one of `api`, `base`, `path`",
        ),
        case(
            "    base: base\n    allow",
            "    base: long\n    allow",
            "models.long.base = 'long': leads back to itself; start from",
        ),
        case(
            "infini, segment_length: 64",
            "sketchwalk",
            "models.infini.attention.type = 'sketchwalk': is applied at",
        ),
    ],
)
def test_models_that_cannot_be_opened_are_rejected(old, new, message, at):
    check_error(old, new, message, at)


def test_pickled_weights_are_refused_unless_allowed(experiment_folder):
    (experiment_folder / "checkpoint/pytorch_model.bin").write_bytes(b"")
    assert error_of(EXPERIMENT) == (
        "trial.yaml:5: models.base.path = 'checkpoint': has only pickled weights; "
        "save them as safetensors, or write allow_pickle: true if you trust them"
    )
    allowed = experiment_folder / "allowed.yaml"
    allowed.write_text(
        EXPERIMENT.replace("path: checkpoint", "path: checkpoint, allow_pickle: true")
    )
    assert read_experiment(allowed).models["base"].allow_pickle
    (experiment_folder / "checkpoint/model.safetensors").write_bytes(b"")
    assert not read(EXPERIMENT).models["base"].allow_pickle


def test_cyclic_bases_are_rejected(experiment_folder):
    text = EXPERIMENT.replace("base: base\n    allow", "base: infini\n    allow", 1)
    message = error_of(text.replace("  infini:\n    base: base", "  infini:\n    base: long"))
    assert message.startswith("trial.yaml:7: models.long.base = 'infini': leads back to itself")


def test_a_truncated_config_json_is_named(experiment_folder):
    (experiment_folder / "checkpoint/config.json").write_text('{"max_pos')
    assert error_of(EXPERIMENT).startswith(
        "trial.yaml:5: models.base.path = 'checkpoint': config.json is not"
    )


def test_a_config_json_without_an_object_is_named(experiment_folder):
    (experiment_folder / "checkpoint/config.json").write_text("[]")
    assert "config.json is not a JSON object; download it again" in error_of(EXPERIMENT)


def test_a_chat_template_can_be_named(experiment_folder):
    text = EXPERIMENT.replace("path: checkpoint", "path: checkpoint, chat_template: rags", 1)
    checkpoint = experiment_folder / "checkpoint"
    assert "chat_template = 'rags': has no template" in error_of(text)
    (checkpoint / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        (checkpoint / f"additional_chat_templates/{name}.jinja").write_text("x")
    assert error_of(text).endswith(
        "chat_template = 'rags': no such template; did you mean `rag`? write one of rag, tool_use"
    )
    assert "no default template; write one of rag, tool_use" in error_of(
        text.replace("rags", "true")
    )
    chat = read(text.replace("rags", "rag")).models["base"].chat
    assert chat is not None
    assert chat.template == "rag"
    files = read(text.replace("rags", "rag")).models["base"].files
    assert any(file.endswith("additional_chat_templates/rag.jinja") for file in files)
