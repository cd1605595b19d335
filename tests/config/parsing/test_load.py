from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.config.experiment import Experiment
from needlework.config.parsing.load import load_experiment, read_experiment

GOOD = """\
experiment: trial
seed: 7

models:
  base: {path: checkpoint}
  long:
    base: base
    allow_extrapolation: true
    finetune: {data: keys, sequence_length: 256, learning_rate: 1.0e-3}
  infini:
    base: base
    attention: {type: infini, segment_length: 64}
    finetune:
      data: keys
      sequence_length: 256

finetune_data:
  keys: {type: passkey, length: 256, digits: [3, 4]}
  needles: {type: task, task: needle, length: [192, 256]}

gates:
  own: {model: base, block_size: 32, distill: {data: [keys, needles], sequence_length: 300}}

systems:
  dense: {model: base}
  seer: {model: base, attention: {type: seer, gates: own, block_size: 32, density: 0.2}}
  given: {model: base, attention: {type: seer, gates: saved, block_size: 64, density: 0.3}}
  walk:
    model: base
    attention: {type: sketchwalk, heads: sum, block_size: 16, density: 0.25}
  infini: {model: infini}
baseline: dense

tasks:
  passkey: {type: passkey, digits: 5}
  needle: {type: niah_single_1}
lengths: [512, 1024]
depths: [0, 50, 100]
samples: 6
"""

# What is written in place of what, and the line that comes: its key and value, its remedy.
WRONG = [
    # unknown keys, the nearest named
    ("samples: 6", "sampels: 6", "sampels = 6: unknown key; did you mean `samples`?"),
    ("path: checkpoint", "path: checkpoint, dtpe: float32", "models.base.dtpe = 'float32': unknow"),
    (
        "base: base\n    att",
        "base: base\n    atention: 1\n    att",
        "models.infini.atention = 1: unk",
    ),
    (
        "block_size: 16",
        "blok_size: 16",
        "systems.walk.attention.blok_size = 16: unknown key; did you mean `block_size`?",
    ),
    (
        "learning_rate: 1",
        "learn_rate: 1",
        "models.long.finetune.learn_rate = 0.001: unknown key; did you mean `learning_rate`?",
    ),
    ("digits: [3, 4]", "digit: 3", "finetune_data.keys.digit = 3: unknown key; did you mean `digi"),
    ("digits: 5", "digts: 5", "tasks.passkey.digts = 5: unknown key; did you mean `digits`?"),
    ("dense: {model", "dense: {modle", "systems.dense.model: is missing; add it"),
    # types
    ("samples: 6", "samples: '6'", "samples = '6': write a whole number"),
    ("samples: 6", "samples: 6.0", "samples = 6.0: write a whole number"),
    ("samples: 6", "samples: true", "samples = True: write a whole number"),
    ("samples: 6", "samples:", "samples: write a whole number"),
    ("seed: 7", "seed: [7]", "seed: write a whole number"),
    ("lengths: [512, 1024]", "lengths: 512", "lengths = 512: write a list, such as [1, 2]"),
    ("1.0e-3", "1e-3", "models.long.finetune.learning_rate = '1e-3': write a number, such as 0.25"),
    ("density: 0.25", "density: a quarter", "systems.walk.attention.density = 'a quarter': write"),
    ("ons: true", "ons: 1", "models.long.allow_extrapolation = 1: write true or false"),
    ("dense: {model: base}", "dense: base", "systems.dense = 'base': write a mapping of keys"),
    ("experiment: trial", "experiment: 3", "experiment = 3: write text"),
    ("baseline: dense", "baseline: [dense]", "baseline: write text"),
    # tasks
    ("depths: [0, 50, 100]", "depths: even", "depths = 'even': write a list of percents, `uni"),
    ("depths: [0, 50, 100]", "depths: {linear: 0}", "depths: write a list of percents, `uniform`"),
    ("depths: [0, 50, 100]", "depths: [0, 101]", "depths.1 = 101: write a number of at most 100"),
    ("depths: [0, 50, 100]", "depths: []", "depths: is empty; name at least one"),
    ("niah_single_1}", "niah, depths: 5}", "tasks.needle.depths = 5: write a list of percents"),
    ("niah_single_1}", "niah, keys: 41}", "tasks.needle: keys x values is 41 needles; write at m"),
    ("niah_single_1}", "niah, queries: 2}", "tasks.needle: queries is above keys; write at most 1"),
    ("niah_single_1}", "vt, hops: 40}", "tasks.needle: chains x (hops + 1) is 41 assignments; wr"),
    ("niah_single_1}", "cwe, common_repeats: 3}", "tasks.needle: write both common_repeats and"),
    ("niah_single_1}", "niah, haystack: nois}", "tasks.needle.haystack = 'nois': names no haystac"),
    ("niah_single_1}", "passkey, filler: ' '}", "tasks.needle.filler = ' ': is blank; write some"),
    ("niah_single_1}", "passkey, depths: [1, 1]}", "tasks.needle.depths.1 = 1: stands twice; wri"),
    ("depths: [0, 50, 100]", "depths: {linear: true}", "depths: write a list of percents, `unif"),
    ("niah_single_1}", "qa_1}", "tasks.needle.path: is missing; add it: SQuAD's dev-v2.0.json"),
    ("niah_single_1}", "qa_1, path: a.json}", "tasks.needle.path = 'a.json': no file a.json; name"),
    (
        "niah_single_1}",
        "ruler_jsonl, path: 'a/{length}.jsonl'}",
        "tasks.needle.path = 'a/{length}.jsonl': no file a/512.jsonl; name one that is there",
    ),
    (
        "samples: 6",
        "samples: 6\nhaystacks: {essay: {path: essays/}}",
        "haystacks.essay.path = 'essays/': no such file or folder; name an existing one",
    ),
    (
        "samples: 6",
        "samples: 6\nhaystacks: {noise: {path: checkpoint}}",
        "haystacks.noise: is built in; give yours another name",
    ),
    (
        "path: checkpoint}",
        "path: checkpoint, chat_template: true}",
        "models.base.chat_template = True: has no template",
    ),
    (
        "path: checkpoint}",
        "path: checkpoint, thinking_tokens: 9}",
        "models.base.thinking_tokens = 9: needs a chat template",
    ),
    ("{type: sketchwalk, h", "{h", "systems.walk.attention.type: is missing; add it"),
    # values out of their bounds
    ("0.25}", "1.5}", "systems.walk.attention.density = 1.5: write a number of at most 1"),
    ("0.25}", "0}", "systems.walk.attention.density = 0: write a number above 0"),
    ("0.25}", "-0.1}", "systems.walk.attention.density = -0.1: write a number above 0"),
    ("0.25}", ".nan}", "systems.walk.attention.density = nan:"),
    ("1.0e-3", ".inf", "models.long.finetune.learning_rate = inf: input should be a finite number"),
    ("th: 64", "th: 0", "models.infini.attention.segment_length = 0: write a number of at least"),
    (
        "1.0e-3",
        "1.0e-3, mixed_precision: fp16",
        "models.long.finetune.mixed_precision = 'fp16': did you mean `bf16`? write one of no, bf16",
    ),
    (
        "1.0e-3",
        "1.0e-3, adam_betas: [0.9, 1]",
        "models.long.finetune.adam_betas.1 = 1: write a number below 1",
    ),
    ("samples: 6", "samples: 0", "samples = 0: write a number of at least 1"),
    ("[0, 50, 100]", "[0, 50, 101]", "depths.2 = 101: write a number of at most 100"),
    ("[0, 50, 100]", "[]", "depths: is empty; name at least one"),
    ("digits: 5", "digits: 40", "tasks.passkey.digits = 40: write a number of at most 20"),
    (
        "heads: sum",
        "heads: total",
        "systems.walk.attention.heads = 'total': write one of mean, sum",
    ),
    (
        "type: sketchwalk",
        "type: sketchwlk",
        "systems.walk.attention.type = 'sketchwlk': did you mean `sketchwalk`? write one of",
    ),
    (
        "type: niah_single_1",
        "type: niah_singel_1",
        "tasks.needle.type = 'niah_singel_1': did you mean `niah_single_1`? write one of passkey",
    ),
    # names that are no plain words
    (
        "experiment: trial",
        "experiment: ../trial",
        "experiment = '../trial': is no plain word; a let",
    ),
    ("infini: {model", "in fini: {model", "systems.in fini: is no plain word; a letter first"),
    ("needle: {", "a/b: {", "tasks.a/b: is no plain word; a letter first"),
    ("dense: {model", "1: {model", "systems.1: write text, in quotes if it looks like a number"),
    ("keys: {type", "'': {type", "finetune_data.: is no plain word; a letter first"),
    # gates
    ("own, b", "ow, b", "systems.seer.attention.gates = 'ow': names no gates; did you mean `own`?"),
    (
        "gates: saved",
        "gates: ./nowhere",
        "systems.given.attention.gates = './nowhere': names no gates; write one of own, or a",
    ),
    ("gates: saved", "gates: checkpoint", "gates = 'checkpoint': has no gates.json; name a folder"),
    ("gates: saved", "gates: cut", "gates = 'cut': has a gates.json that is no JSON object; fetch"),
    ("gates: saved", "gates: list", "gates = 'list': has a gates.json that is no JSON object; "),
    ("gates: saved", "gates: none", "gates = 'none': has a gates.json without block_size or stag"),
    ("gates: saved", "gates: text", "gates = 'text': has a gates.json without block_size or stag"),
    ("gates: saved", "gates: bool", "gates = 'bool': has a gates.json without block_size or sta"),
    ("gates: saved", "gates: stageless", "'stageless': has a gates.json without block_size or sta"),
    (
        "gates: saved",
        "gates: half",
        "systems.given.attention.gates = 'half': has none for decode; write skip_decode: true, or",
    ),
    (
        "base, block_size: 32",
        "base, stages: [decode], block_size: 32",
        "systems.seer.attention.gates = 'own': has none for prefill; write skip_prefill: true, or",
    ),
    (
        "base, block_size: 32",
        "base, stages: [prefill, decode, decode], block_size: 32",
        "gates.own.stages.2 = 'decode': stands twice; write it once",
    ),
    (
        "own: {model: base",
        "own: {model: infini",
        "gates.own.model = 'infini': has infini as its own attention, by models.infini; name a mod",
    ),
    (
        "    model: base\n    attention: {type: sketchwalk",
        "    model: infini\n    attention: {type: sketchwalk",
        "systems.walk.model = 'infini': has infini as its own attention, by models.infini; leave o",
    ),
    (
        "infini: {model: infini}",
        "infini: {model: infini}\n  start: {model: long, attention: {type: infini_alignment, "
        "segment_alignment: start}}",
        "systems.start.attention.type = 'infini_alignment': is for Infini models and long is none",
    ),
    (
        "density: 0.3",
        "top_k_blocks: 4, threshold: 0.1, token_budget: 64",
        "systems.given.attention: top_k_blocks: each stage says how many blocks are kept; leave o",
    ),
    (
        "density: 0.3",
        "top_k_blocks: 4, nz_ratio: 0.1, skip_decode: true",
        "systems.given.attention: top_k_blocks: each stage says how many blocks are kept; leave o",
    ),
    (
        "seer: {model: base",
        "seer: {model: long",
        "systems.seer.attention.gates = 'own': are gates of model `base`; name gates of `long`",
    ),
    (
        "own, block_size: 32",
        "own, block_size: 16",
        "systems.seer.attention.block_size = 16: is not the block size of the gates; write 32",
    ),
    (
        "saved, block_size: 64",
        "saved, block_size: 32",
        "systems.given.attention.block_size = 32: is not the block size of the gates; write 64",
    ),
    ("own: {model: base", "own: {model: bsae", "gates.own.model = 'bsae': names no model; did you"),
    ("[keys, needles]", "[keys, needle]", "gates.own.distill.data.1 = 'needle': names no finetun"),
    ("[keys, needles]", "[]", "gates.own.distill.data: is empty; name at least one"),
    ("[keys, needles]", "keys", "gates.own.distill.data = 'keys': write a list, such as [1, 2]"),
    (
        "sequence_length: 300",
        "sequence_length: 99",
        "gates.own.distill.sequence_length = 99: is be",
    ),
    (
        "keys: {type: passkey, length: 256, digits: [3, 4]}",
        "keys: {type: rows, path: ./none.jsonl, length: 256}",
        "finetune_data.keys.path = './none.jsonl': no such file or folder; name an existing one",
    ),
    (
        "keys: {type: passkey, length: 256, digits: [3, 4]}",
        "keys: {type: text, path: ./nowhere, length: 256}",
        "finetune_data.keys.path = './nowhere': no such file or folder; name an existing one",
    ),
    (
        "keys: {type: passkey, length: 256, digits: [3, 4]}",
        "keys: {type: text, path: ., length: 256}",
        "gates.own.distill.data.0 = 'keys': is text, without the answers that gates are taught by",
    ),
    (
        "keys: {type: passkey, length: 256, digits: [3, 4]}",
        "keys: {type: recall, length: 256}",
        "gates.own.distill.data.0 = 'keys': is text, without the answers that gates are taught by",
    ),
    (
        "{data: keys, s",
        "{data: {keys: 3, needls: 1}, s",
        "models.long.finetune.data: names no finetune_data; did you mean `needles`?",
    ),
    (
        "{data: keys, s",
        "{data: {keys: 3, needles: 0}, s",
        "models.long.finetune.data.needles = 0: write a number above 0",
    ),
    (
        "{data: keys, s",
        "{data: {keys: 3, needles: much}, s",
        "models.long.finetune.data.needles = 'much': write a number",
    ),
    ("{data: keys, s", "{data: {}, s", "models.long.finetune.data: is empty; name at least one"),
    ("task: needle,", "task: neddle,", "finetune_data.needles.task = 'neddle': names no task; did"),
    # names that lead nowhere
    (
        "dense: {model: base}",
        "dense: {model: bsae}",
        "systems.dense.model = 'bsae': names no model; ",
    ),
    (
        "dense: {model: base}",
        "dense: {model: bsae}",
        "did you mean `base`? write one of base, long,",
    ),
    (
        "baseline: dense",
        "baseline: dens",
        "baseline = 'dens': names no system; did you mean `dense`",
    ),
    (
        "{data: keys, s",
        "{data: kyes, s",
        "models.long.finetune.data = 'kyes': names no finetune_data",
    ),
    (
        "    base: base\n    b",
        "    base: bas\n    b",
        "models.long.base = 'bas': names no model; did",
    ),
    ("samples: 6", "samples: 6\npackage: base", "package = 'base': names no pretrained model"),
    (
        "path: checkpoint",
        "path: ./chekpoint",
        "models.base.path = './chekpoint': no such folder; name an existing one",
    ),
    (
        "path: checkpoint",
        "path: .",
        "models.base.path = '.': has no config.json; name a Hugging Fac",
    ),
    # combinations that cannot work
    (
        "1024]",
        "1025]",
        "lengths.1 = 1025: is beyond the 1024 positions of model `base`; write at most 1024, "
        "or say `allow_extrapolation: true` in models.base",
    ),
    ("[512, 1024]", "[0, 1024]", "lengths.0 = 0: is not a number of tokens; write a whole number"),
    (
        "path: checkpoint",
        "path: checkpoint, base: long",
        "models.base: name exactly one of `path`,",
    ),
    ("{path: checkpoint}", "{dtype: float32}", "models.base: name exactly one of `path`, `base`"),
    (
        "    base: base\n    b",
        "    base: long\n    b",
        "models.long.base = 'long': leads back to its",
    ),
    (
        "keys, sequence_length: 256",
        "keys, sequence_length: 255",
        "sequence_length = 255: is below the",
    ),
    (
        "{type: sketchwalk, heads: sum, block_size: 16, density: 0.25}",
        "{type: infini}",
        "under models",
    ),
    (
        "infini, segment_length: 64",
        "sketchwalk",
        "models.infini.attention.type = 'sketchwalk': is pu",
    ),
    (
        "keys, sequence_length: 256",
        "keys, processes: 8, sequence_length: 256",
        "models.long.finetune.processes = 8: shares the rows of a step among 8, and a stage has 4;",
    ),
    (
        "keys, sequence_length: 256",
        "keys, gradient_accumulation_steps: 3, processes: 2, sequence_length: 256",
        "finetune.gradient_accumulation_steps = 3: shares the rows of a step among 6",
    ),
    (
        "keys, sequence_length: 256",
        "keys, accelerate_config: a.yaml, sequence_length: 256",
        "models.long.finetune.accelerate_config = 'a.yaml': no such file; name one that",
    ),
    (
        "keys, sequence_length: 256",
        "keys, validate_every: 5, sequence_length: 256",
        "models.long.finetune.validate_every = 5: needs a text; name one of streams under",
    ),
    (
        "keys, sequence_length: 256",
        "keys, validation: text, validate_every: 5, sequence_length: 256",
        "models.long.finetune.validation = 'text': names no stream; there is none to name",
    ),
    (
        "sequence_length: 300",
        "sequence_length: 300, processes: 5",
        "gates.own.distill.processes = 5: shares the rows of a step among 5, and a stage has 4;",
    ),
    # what stands twice
    (
        "baseline: dense",
        "  dense: {model: long}\nbaseline: dense",
        "systems.dense: stands twice, fir",
    ),
    ("samples: 6", "samples: 6\nseed: 8", "seed: stands twice, first in line 2; give each its own"),
    ("[512, 1024]", "[512, 512]", "lengths.1 = 512: stands twice; write it once"),
    ("[0, 50, 100]", "[0, 50, 0]", "depths.2 = 0: stands twice; write it once"),
    # no YAML
    ("[512, 1024]", "[512, 1024", "not YAML: expected ',' or ']'"),
    ("samples: 6", "\tsamples: 6", "not YAML: found character '\\t' that cannot start any token"),
    ("samples: 6", "samples: !!python/none", "not YAML: could not determine a constructor"),
]
# Where the line with the wrong key is not the one that was changed.
NEAREST = {
    "is text, without": "own: {model: base",
    "systems.dense.model: is missing": "dense: {modle",
    "not YAML: expected": "depths",
    "models.long.base = 'long'": "base: long",
    "gates = 'own': has none": "seer: {model: base",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a checkpoint that is made for 1024 positions."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text('{"max_position_embeddings": 1024}')
    (tmp_path / "checkpoint/tokenizer.json").write_text("{}")
    stages = '"stages": ["prefill", "decode"]'
    for name, description in {
        "saved": f'{{"block_size": 64, {stages}}}',
        "half": '{"block_size": 64, "stages": ["prefill"]}',
        "cut": '{"block',
        "list": "[]",
        "none": f'{{"block_size": 0, {stages}}}',
        "text": f'{{"block_size": "64", {stages}}}',
        "bool": f'{{"block_size": true, {stages}}}',
        "stageless": '{"block_size": 64}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "gates.json").write_text(description)
        (tmp_path / name / "gates.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _message(text: str) -> str:
    Path("trial.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_experiment("trial.yaml")
    return str(caught.value)


def _read(text: str) -> Experiment:
    Path("trial.yaml").write_text(text)
    return read_experiment("trial.yaml")


def test_a_right_file_is_read_whole(folder):
    experiment = _read(GOOD)
    assert list(experiment.systems) == ["dense", "seer", "given", "walk", "infini"]
    assert experiment.systems["walk"].attention.density == 0.25
    assert experiment.models["infini"].attention.segment_length == 64
    assert experiment.models["long"].finetune.learning_rate == 1.0e-3
    assert experiment.root_model("infini") == "base"
    assert (experiment.lengths, experiment.samples, experiment.seed) == ([512, 1024], 6, 7)


@pytest.mark.parametrize(("right", "wrong", "says"), WRONG, ids=lambda text: text[:30])
def test_a_wrong_file_is_one_line_with_place_key_value_and_remedy(folder, right, wrong, says):
    assert GOOD.count(right) == 1
    text = GOOD.replace(right, wrong)
    message = _message(text)

    assert "\n" not in message
    assert says in message
    marks = [mark for key, mark in NEAREST.items() if key in message]
    before, after = GOOD.splitlines(), text.splitlines()
    changed = next(i for i, line in enumerate(after) if i >= len(before) or line != before[i])
    if marks:
        changed = next(i for i, line in enumerate(after) if marks[0] in line)
    assert message.startswith(f"trial.yaml:{changed + 1}: ")


def test_a_missing_key_names_itself(folder):
    kept = [line for line in GOOD.splitlines() if not line.startswith("lengths")]
    message = _message("\n".join(kept))
    assert message.startswith("trial.yaml:1: lengths: is missing; add it: tokens of prompt and")


def test_several_faults_are_one_line_that_counts_the_others(folder):
    message = _message(GOOD.replace("samples: 6", "samples: x").replace("seed: 7", "seed: y"))
    assert message == "trial.yaml:2: seed = 'y': write a whole number (and 1 more)"


def test_pickled_weights_are_refused_unless_allowed(folder):
    (folder / "checkpoint/pytorch_model.bin").write_bytes(b"")
    assert _message(GOOD) == (
        "trial.yaml:5: models.base.path = 'checkpoint': has its weights in pickle files alone; "
        "save them as safetensors, or write allow_pickle: true if you trust them"
    )
    allowed = folder / "allowed.yaml"
    allowed.write_text(GOOD.replace("path: checkpoint", "path: checkpoint, allow_pickle: true"))
    assert read_experiment(allowed).models["base"].allow_pickle
    (folder / "checkpoint/model.safetensors").write_bytes(b"")
    (folder / "trial.yaml").write_text(GOOD)
    assert not read_experiment("trial.yaml").models["base"].allow_pickle


def test_bases_in_a_ring_are_told(folder):
    text = GOOD.replace("base: base\n    allow_extrapolation: true", "base: infini", 1)
    message = _message(text.replace("  infini:\n    base: base", "  infini:\n    base: long"))
    assert message.startswith("trial.yaml:7: models.long.base = 'infini': leads back to itself")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"",
            "trial.yaml:1: experiment: is missing; add it: names the folder under results/ "
            "(and 4 more)",
        ),
        (b"- a\n- b\n", "trial.yaml:1: the file: write a mapping of keys"),
        (b"trial\n", "trial.yaml:1: the file = 'trial': write a mapping of keys"),
        (b"experiment: \xff\n", "trial.yaml: not UTF-8 text; save it as UTF-8"),
        (b"a: \x01\n", "trial.yaml: not YAML: it holds control characters; take them out"),
        (b"? [a, b]\n: c\n", "trial.yaml:1: not YAML: found unhashable key; mend the line"),
    ],
)
def test_what_is_no_mapping_is_told(folder, content, says):
    (folder / "trial.yaml").write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_experiment("trial.yaml")
    assert str(caught.value) == says


def test_a_file_that_is_not_there_is_told(folder):
    with pytest.raises(
        ValueError, match=r"^none\.yaml: cannot be read: No such file or directory$"
    ):
        read_experiment("none.yaml")


def test_a_checkpoint_with_a_cut_config_is_told(folder):
    (folder / "checkpoint/config.json").write_text('{"max_pos')
    message = _message(GOOD)
    assert message.startswith(
        "trial.yaml:5: models.base.path = 'checkpoint': has a config.json that"
    )


def test_an_attention_of_its_own_is_found_down_the_bases(folder):
    derived = "  tuned: {base: infini, finetune: {data: keys, sequence_length: 256}}\n"
    text = GOOD.replace("\nfinetune_data:", derived + "\nfinetune_data:")
    _read(text)
    for right, where in (
        ("own: {model: base", "gates.own"),
        ("seer: {model: base", "systems.seer"),
    ):
        message = _message(text.replace(right, right.replace("base", "tuned")))
        assert f"{where}.model = 'tuned': has infini as its own attention, by models.inf" in message
    # A converted checkpoint says so itself; its own systems are as they are.
    own = '{"max_position_embeddings": 1024, "needlework_attention": "infini"}'
    (folder / "checkpoint/config.json").write_text(own)
    message = _message(GOOD)
    assert "gates.own.model = 'base': has infini as its own attention, by models.base" in message
    (folder / "checkpoint/config.json").write_text("[]")
    assert "has a config.json that is no JSON object; fetch it again" in _message(GOOD)


def test_positions_count_where_the_model_says_so(folder):
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
    with pytest.raises(ValueError, match="beyond the 1024 positions of model `tuned`"):
        lengths(2048, tuned=derived)
    assert lengths(2048, tuned={**derived, "allow_extrapolation": True}) == [2048]
    # Infini-attention counts positions within a segment.
    assert lengths(2048, tuned={**derived, "attention": {"type": "infini"}}) == [2048]
    (folder / "checkpoint/config.json").write_text(
        '{"text_config": {"max_position_embeddings": 512}}'
    )
    with pytest.raises(ValueError, match="beyond the 512 positions of model `base`"):
        lengths(1024)


def test_held_out_text_is_read_and_within_positions(folder):
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

    with pytest.raises(ValueError, match=r"tuned.finetune.validation.* is never read; write valid"):
        validated({"tokens": 2000})
    wrong = "models.tuned.finetune.validation_tokens.* goes beyond the 1024 positions of the model"
    with pytest.raises(ValueError, match=wrong):
        validated({"tokens": 2000}, validate_every=5)
    assert validated({"tokens": 1024}, validate_every=5)
    assert validated({"tokens": 2000}, validate_every=5, validation_tokens=1024)
    assert validated({"tokens": 2000, "chunk_size": 64, "overlap": 8}, validate_every=5)


def _is_whole(path: Path) -> bool:
    # What others leave to be filled in stops them with a line: tests/config/test_opening.py.
    return "/path/to/" not in path.read_text()


@pytest.mark.parametrize(
    "file",
    [
        "config.yaml",
        *(f"config/{p.name}" for p in (ROOT / "config").glob("*.yaml") if _is_whole(p)),
    ],
)
def test_every_shipped_experiment_loads(monkeypatch, file):
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(file)
    assert experiment.experiment == ("quick" if file == "config.yaml" else Path(file).stem)
