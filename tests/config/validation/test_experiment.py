import pytest
from support.experiment_file import EXPERIMENT, case, check_error, error_of, read

from needlework.config.parsing.load import load_experiment


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "niah_single_1}",
            "niah, haystack: nois}",
            "tasks.needle.haystack = 'nois': unknown haystack; did you mean `noise`? write one of",
        ),
        case(
            "niah_single_1}",
            "passkey, depths: [1, 1]}",
            "tasks.needle.depths.1 = 1: is a duplicate; remove it",
        ),
        case(
            "niah_single_1}",
            "qa_1, path: a.json}",
            "tasks.needle.path = 'a.json': no file a.json; write the path of a file",
        ),
        case(
            "niah_single_1}",
            "ruler_jsonl, path: 'a/{length}.jsonl'}",
            "tasks.needle.path = 'a/{length}.jsonl': no file a/512.jsonl; write the path of a file",
        ),
        case(
            "samples: 6",
            "samples: 6\nhaystacks: {essay: {path: essays/}}",
            "haystacks.essay.path = 'essays/': no such file or folder; write an existing path",
        ),
        case(
            "samples: 6",
            "samples: 6\nhaystacks: {noise: {path: checkpoint}}",
            "haystacks.noise: is the name of a built-in haystack; rename yours",
        ),
        case(
            "keys: {type: passkey, length: 256, digits: [3, 4]}",
            "keys: {type: rows, path: ./none.jsonl, length: 256}",
            "finetune_data.keys.path = './none.jsonl': no such file or folder; write an existing",
        ),
        case(
            "keys: {type: passkey, length: 256, digits: [3, 4]}",
            "keys: {type: text, path: ./nowhere, length: 256}",
            "finetune_data.keys.path = './nowhere': no such file or folder; write an existing path",
        ),
        case(
            "task: needle,",
            "task: neddle,",
            "finetune_data.needles.task = 'neddle': unknown task; did",
        ),
        case(
            "dense: {model: base}",
            "dense: {model: bsae}",
            "systems.dense.model = 'bsae': unknown model; did you mean",
        ),
        case(
            "dense: {model: base}",
            "dense: {model: bsae}",
            "systems.dense.model = 'bsae': unknown model; did you mean `base`? write one of",
        ),
        case(
            "baseline: dense",
            "baseline: dens",
            "baseline = 'dens': unknown system; did you mean `dense`?",
        ),
        case(
            "1024]",
            "1025]",
            "lengths.1 = 1025: exceeds the 1024 positions of model `base`; write at most 1024, or",
        ),
        case(
            "[512, 1024]", "[0, 1024]", "lengths.0 = 0: is not a length; write an integer above 0"
        ),
        case(
            "{type: sketchwalk, heads: sum, block_size: 16, density: 0.25}",
            "{type: infini}",
            "systems.walk.attention.type = 'infini': is part of a model's weights; write it",
        ),
        case("[512, 1024]", "[512, 512]", "lengths.1 = 512: is a duplicate; remove it"),
        case("[0, 50, 100]", "[0, 50, 0]", "depths.2 = 0: is a duplicate; remove it"),
    ],
)
def test_unknown_references_and_impossible_values_are_rejected(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "own: {model: base",
            "own: {model: infini",
            "gates.own.model = 'infini': uses infini attention (see models.infini); write a model",
        ),
        case(
            "    model: base\n    attention: {type: sketchwalk",
            "    model: infini\n    attention: {type: sketchwalk",
            "systems.walk.model = 'infini': uses infini attention (see models.infini); remove the",
        ),
        case(
            "infini: {model: infini}",
            "infini: {model: infini}\n  start: {model: long, attention: {type: infini_alignment, "
            "segment_alignment: start}}",
            "systems.start.attention.type = 'infini_alignment': needs an Infini model, and long is",
        ),
    ],
)
def test_attention_that_does_not_fit_a_converted_model_is_rejected(old, new, message, at):
    check_error(old, new, message, at)


def test_a_converted_base_is_found_through_derived_models(experiment_folder):
    derived = "  tuned: {base: infini, finetune: {data: keys, sequence_length: 256}}\n"
    text = EXPERIMENT.replace("\nfinetune_data:", derived + "\nfinetune_data:")
    read(text)
    for old, section in (
        ("own: {model: base", "gates.own"),
        ("seer: {model: base", "systems.seer"),
    ):
        message = error_of(text.replace(old, old.replace("base", "tuned")))
        assert f"{section}.model = 'tuned': uses infini attention (see models.infini)" in message


def test_a_converted_checkpoint_is_recognized_by_its_config(experiment_folder):
    converted = '{"max_position_embeddings": 1024, "needlework_attention": "infini"}'
    (experiment_folder / "checkpoint/config.json").write_text(converted)
    message = error_of(EXPERIMENT)
    assert "gates.own.model = 'base': uses infini attention (see models.base)" in message


def test_lengths_are_limited_by_positions_unless_the_model_allows_more(experiment_folder):
    def lengths(longest: int, **models) -> list[int]:
        config = {
            "experiment": "trial",
            "models": {"base": {"path": "checkpoint"}, **models},
            "finetune_data": {"keys": {"type": "passkey", "length": 256}},
            "systems": {"only": {"model": next(iter(models), "base")}},
            "tasks": {"passkey": {"type": "passkey"}},
            "lengths": [longest],
        }
        return load_experiment(config).lengths

    recipe = {"data": "keys", "sequence_length": 256}
    derived = {"base": "base", "finetune": recipe}
    with pytest.raises(ValueError, match="exceeds the 1024 positions of model `tuned`"):
        lengths(2048, tuned=derived)
    assert lengths(2048, tuned={**derived, "allow_extrapolation": True}) == [2048]
    # Infini-attention counts positions within a segment.
    assert lengths(2048, tuned={**derived, "attention": {"type": "infini"}}) == [2048]
    (experiment_folder / "checkpoint/config.json").write_text(
        '{"text_config": {"max_position_embeddings": 512}}'
    )
    with pytest.raises(ValueError, match="exceeds the 512 positions of model `base`"):
        lengths(1024)
