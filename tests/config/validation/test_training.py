import pytest
from support.experiment_file import case, check_error

from needlework.config.parsing.load import load_experiment


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "[keys, needles]",
            "[keys, needle]",
            "gates.own.distill.data.1 = 'needle': unknown finetune_data; did you mean `needles`?",
        ),
        case(
            "sequence_length: 300",
            "sequence_length: 99",
            "gates.own.distill.sequence_length = 99: is below the 256",
        ),
        case(
            "keys: {type: passkey, length: 256, digits: [3, 4]}",
            "keys: {type: text, path: ., length: 256}",
            "gates.own.distill.data.0 = 'keys': is text without answers, which gates need; write",
            at="own: {model: base, block",
        ),
        case(
            "keys: {type: passkey, length: 256, digits: [3, 4]}",
            "keys: {type: recall, length: 256}",
            "gates.own.distill.data.0 = 'keys': is text without answers, which gates need; write",
            at="own: {model: base, block",
        ),
        case(
            "{data: keys, s",
            "{data: {keys: 3, needls: 1}, s",
            "models.long.finetune.data: unknown finetune_data; did you mean `needles`?",
        ),
        case(
            "{data: keys, s",
            "{data: kyes, s",
            "models.long.finetune.data = 'kyes': unknown finetune_data;",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, sequence_length: 255",
            "models.long.finetune.sequence_length = 255: is below the",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, processes: 8, sequence_length: 256",
            "models.long.finetune.processes = 8: divides the rows of a step into 8 parts, but a",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, gradient_accumulation_steps: 3, processes: 2, sequence_length: 256",
            "models.long.finetune.gradient_accumulation_steps = 3: divides the rows of a step",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, accelerate_config: a.yaml, sequence_length: 256",
            "models.long.finetune.accelerate_config = 'a.yaml': no such file; write the path of a",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, validate_every: 5, sequence_length: 256",
            "models.long.finetune.validate_every = 5: needs held-out text; set validation to a",
        ),
        case(
            "keys, sequence_length: 256",
            "keys, validation: text, validate_every: 5, sequence_length: 256",
            "models.long.finetune.validation = 'text': unknown stream; none is defined",
        ),
        case(
            "sequence_length: 300",
            "sequence_length: 300, processes: 5",
            "gates.own.distill.processes = 5: divides the rows of a step into 5 parts, but a stage",
        ),
    ],
)
def test_recipes_that_cannot_run_are_rejected(old, new, message, at):
    check_error(old, new, message, at)


def test_validation_text_must_be_used_and_fit_the_positions(experiment_folder):
    def validated(stream: dict, **keys):
        recipe = {"data": "keys", "sequence_length": 256, "validation": "text", **keys}
        config = {
            "experiment": "trial",
            "models": {
                "base": {"path": "checkpoint"},
                "tuned": {"base": "base", "finetune": recipe},
            },
            "finetune_data": {"keys": {"type": "passkey", "length": 256}},
            "systems": {"only": {"model": "base"}},
            "tasks": {"passkey": {"type": "passkey"}},
            "streams": {"text": {"systems": {"only": {"overlap": 8}}, **stream}},
            "lengths": [512],
        }
        return load_experiment(config)

    with pytest.raises(ValueError, match=r"tuned.finetune.validation.* is never used; set valid"):
        validated({"tokens": 2000})
    message = "models.tuned.finetune.validation_tokens.* exceeds the 1024 positions of the model"
    with pytest.raises(ValueError, match=message):
        validated({"tokens": 2000}, validate_every=5)
    assert validated({"tokens": 1024}, validate_every=5)
    assert validated({"tokens": 2000}, validate_every=5, validation_tokens=1024)
    assert validated({"tokens": 2000, "chunk_size": 64, "overlap": 8}, validate_every=5)
