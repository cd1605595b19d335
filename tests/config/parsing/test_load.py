from pathlib import Path

import pytest
from support.experiment_file import EXPERIMENT, case, check_error, error_of, read
from support.paths import ROOT

from needlework.config.parsing.load import read_experiment

pytestmark = pytest.mark.slow


def test_a_valid_file_is_read_in_full(experiment_folder):
    experiment = read(EXPERIMENT)
    assert list(experiment.systems) == ["dense", "seer", "given", "walk", "infini"]
    assert experiment.systems["walk"].attention.density == 0.25
    assert experiment.models["infini"].attention.segment_length == 64
    assert experiment.models["long"].finetune.learning_rate == 1.0e-3
    assert experiment.root_model("infini") == "base"
    assert (experiment.lengths, experiment.samples, experiment.seed) == ([512, 1024], 6, 7)


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "samples: 6",
            "sampels: 6",
            "sampels = 6: unknown key; did you mean `samples`? write one",
        ),
        case(
            "path: checkpoint",
            "path: checkpoint, dtpe: float32",
            "models.base.dtpe = 'float32': unknown key; did you mean",
        ),
        case(
            "base: base\n    att",
            "base: base\n    atention: 1\n    att",
            "models.infini.atention = 1: unknown key; did you mean",
        ),
        case(
            "block_size: 16",
            "blok_size: 16",
            "systems.walk.attention.blok_size = 16: unknown key; did you mean `block_size`?",
        ),
        case(
            "learning_rate: 1",
            "learn_rate: 1",
            "models.long.finetune.learn_rate = 0.001: unknown key; did you mean `learning_rate`?",
        ),
        case(
            "digits: [3, 4]",
            "digit: 3",
            "finetune_data.keys.digit = 3: unknown key; did you mean `digits`?",
        ),
        case(
            "digits: 5", "digts: 5", "tasks.passkey.digts = 5: unknown key; did you mean `digits`?"
        ),
        case(
            "dense: {model",
            "dense: {modle",
            "systems.dense.model: is required; add it: a name under",
        ),
    ],
)
def test_unknown_and_missing_keys_are_named(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case("samples: 6", "samples: '6'", "samples = '6': write an integer"),
        case("samples: 6", "samples: 6.0", "samples = 6.0: write an integer"),
        case("samples: 6", "samples: true", "samples = True: write an integer"),
        case("samples: 6", "samples:", "samples: write an integer"),
        case("seed: 7", "seed: [7]", "seed: write an integer"),
        case("lengths: [512, 1024]", "lengths: 512", "lengths = 512: write a list, such as [1, 2]"),
        case(
            "1.0e-3",
            "1e-3",
            "models.long.finetune.learning_rate = '1e-3': write a number, such as 0.25",
        ),
        case(
            "density: 0.25",
            "density: a quarter",
            "systems.walk.attention.density = 'a quarter': write a",
        ),
        case("ation: true", "ation: 1", "models.long.allow_extrapolation = 1: write true or false"),
        case(
            "dense: {model: base}", "dense: base", "systems.dense = 'base': write a mapping of keys"
        ),
        case(
            "experiment: trial",
            "experiment: 3",
            "experiment = 3: write text, in quotes if it looks like a",
        ),
        case(
            "baseline: dense",
            "baseline: [dense]",
            "baseline: write text, in quotes if it looks like a number",
        ),
        case(
            "niah_single_1}",
            "qa_1}",
            "tasks.needle.path: is required; add it: SQuAD's dev-v2.0.json",
        ),
        case("{type: sketchwalk, h", "{h", "systems.walk.attention.type: is required; add it"),
        case("[keys, needles]", "[]", "gates.own.distill.data: is empty; write at least one entry"),
        case(
            "[keys, needles]",
            "keys",
            "gates.own.distill.data = 'keys': write a list, such as [1, 2]",
        ),
        case(
            "{data: keys, s",
            "{data: {keys: 3, needles: 0}, s",
            "models.long.finetune.data.needles = 0: write a number above 0",
        ),
        case(
            "{data: keys, s",
            "{data: {keys: 3, needles: much}, s",
            "models.long.finetune.data.needles = 'much': write a number",
        ),
        case(
            "{data: keys, s",
            "{data: {}, s",
            "models.long.finetune.data: is empty; write at least one entry",
        ),
        case(
            "depths: [0, 50, 100]",
            "depths: even",
            "depths = 'even': write a list of percents, `uniform`",
        ),
        case(
            "depths: [0, 50, 100]",
            "depths: {linear: 0}",
            "depths: write a list of percents, `uniform`, `{linear: 11}`",
        ),
        case(
            "depths: [0, 50, 100]",
            "depths: [0, 101]",
            "depths.1 = 101: write a number of at most 100",
        ),
        case("depths: [0, 50, 100]", "depths: []", "depths: is empty; write at least one entry"),
        case(
            "niah_single_1}",
            "niah, depths: 5}",
            "tasks.needle.depths = 5: write a list of percents",
        ),
        case(
            "depths: [0, 50, 100]",
            "depths: {linear: true}",
            "depths: write a list of percents, `uniform`, `{linear: 11}`",
        ),
    ],
)
def test_values_of_the_wrong_type_name_the_right_one(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "niah_single_1}",
            "niah, keys: 41}",
            "tasks.needle: keys x values is 41 needles; write at most 40",
        ),
        case(
            "niah_single_1}",
            "niah, queries: 2}",
            "tasks.needle: queries is above keys; write at most 1, or",
        ),
        case(
            "niah_single_1}",
            "vt, hops: 40}",
            "tasks.needle: chains x (hops + 1) is 41 assignments; write",
        ),
        case(
            "niah_single_1}",
            "cwe, common_repeats: 3}",
            "tasks.needle: write both common_repeats and other_repeats",
        ),
        case(
            "niah_single_1}",
            "passkey, filler: ' '}",
            "tasks.needle.filler = ' ': is blank; write some text",
        ),
        case("0.25}", "1.5}", "systems.walk.attention.density = 1.5: write a number of at most 1"),
        case("0.25}", "0}", "systems.walk.attention.density = 0: write a number above 0"),
        case("0.25}", "-0.1}", "systems.walk.attention.density = -0.1: write a number above 0"),
        case("0.25}", ".nan}", "systems.walk.attention.density = nan: input should be a"),
        case(
            "1.0e-3",
            ".inf",
            "models.long.finetune.learning_rate = inf: input should be a finite number",
        ),
        case(
            "th: 64",
            "th: 0",
            "models.infini.attention.segment_length = 0: write a number of at least",
        ),
        case(
            "1.0e-3",
            "1.0e-3, mixed_precision: fp16",
            "models.long.finetune.mixed_precision = 'fp16': did you mean `bf16`? write one of",
        ),
        case(
            "1.0e-3",
            "1.0e-3, adam_betas: [0.9, 1]",
            "models.long.finetune.adam_betas.1 = 1: write a number below 1",
        ),
        case("samples: 6", "samples: 0", "samples = 0: write a number of at least 1"),
        case("[0, 50, 100]", "[0, 50, 101]", "depths.2 = 101: write a number of at most 100"),
        case("[0, 50, 100]", "[]", "depths: is empty; write at least one entry"),
        case("digits: 5", "digits: 40", "tasks.passkey.digits = 40: write a number of at most 20"),
        case(
            "heads: sum",
            "heads: total",
            "systems.walk.attention.heads = 'total': write one of mean, sum",
        ),
        case(
            "type: sketchwalk",
            "type: sketchwlk",
            "systems.walk.attention.type = 'sketchwlk': did you mean `sketchwalk`? write one of",
        ),
        case(
            "type: niah_single_1",
            "type: niah_singel_1",
            "tasks.needle.type = 'niah_singel_1': did you mean `niah_single_1`? write one of",
        ),
        case(
            "density: 0.3",
            "top_k_blocks: 4, threshold: 0.1, token_budget: 64",
            "systems.given.attention: top_k_blocks: each stage sets the number of blocks; "
            "remove one",
        ),
        case(
            "density: 0.3",
            "top_k_blocks: 4, nz_ratio: 0.1, stages: prefill",
            "systems.given.attention: top_k_blocks: each stage sets the number of blocks; "
            "remove one",
        ),
    ],
)
def test_values_out_of_range_name_the_range(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "experiment: trial",
            "experiment: ../trial",
            "experiment = '../trial': is not a valid name; start with a",
        ),
        case(
            "infini: {model",
            "in fini: {model",
            "systems.in fini: is not a valid name; start with a letter",
        ),
        case("needle: {", "a/b: {", "tasks.a/b: is not a valid name; start with a letter, then"),
        case(
            "dense: {model",
            "1: {model",
            "systems.1: write text, in quotes if it looks like a number",
        ),
        case(
            "keys: {type", "'': {type", "finetune_data.: is not a valid name; start with a letter"
        ),
    ],
)
def test_invalid_names_are_explained(old, new, message, at):
    check_error(old, new, message, at)


def test_a_missing_top_level_key_is_explained(experiment_folder):
    kept = [line for line in EXPERIMENT.splitlines() if not line.startswith("lengths")]
    message = error_of("\n".join(kept))
    assert message.startswith("trial.yaml:1: lengths: is required; add it: context lengths: tokens")


def test_every_problem_has_its_line(experiment_folder):
    text = EXPERIMENT.replace("samples: 6", "samples: x").replace("seed: 7", "seed: y")
    last = len(EXPERIMENT.splitlines())
    assert error_of(text).splitlines() == [
        "trial.yaml:2: seed = 'y': write an integer",
        f"trial.yaml:{last}: samples = 'x': write an integer",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            "trial.yaml:1: experiment: is required; add it: name of the folder under results/\n"
            "trial.yaml:1: models: is required; add it: models to open or train\n"
            "trial.yaml:1: systems: is required; add it: systems to compare\n"
            "trial.yaml:1: tasks: is required; add it: tasks to evaluate\n"
            "trial.yaml:1: lengths: is required; add it: context lengths: tokens of prompt and "
            "answer together, or characters of the prompt",
        ),
        (b"- a\n- b\n", "trial.yaml:1: the file: write a mapping of keys"),
        (b"trial\n", "trial.yaml:1: the file = 'trial': write a mapping of keys"),
    ],
)
def test_a_file_without_a_mapping_is_rejected(experiment_folder, content, message):
    (experiment_folder / "trial.yaml").write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_experiment("trial.yaml")
    assert str(caught.value) == message


def _is_complete(path: Path) -> bool:
    # tests/config/test_opening.py covers the files with placeholders to fill in.
    return "/path/to/" not in path.read_text()


@pytest.mark.parametrize(
    "file",
    [
        "config.yaml",
        *(f"config/{p.name}" for p in (ROOT / "config").glob("*.yaml") if _is_complete(p)),
    ],
)
def test_every_shipped_experiment_loads(monkeypatch, file):
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(file)
    assert experiment.experiment == ("quick" if file == "config.yaml" else Path(file).stem)
