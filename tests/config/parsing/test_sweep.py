import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needlework.config.parsing.load import load_experiment, read_experiment

FILE = """\
experiment: trial
models:
  base: {path: checkpoint}
systems:
  dense: {model: base}
  walk:
    model: base
    attention: {type: sketchwalk, heads: sum, dense_layers: 1}
    sweep:
      top_k_blocks: [4, 8]
      block_size: [16, 32]
  floor: {model: base, attention: {type: random}}
baseline: dense
tasks:
  passkey: {type: passkey}
lengths: [512]
"""

# Text to replace, its replacement, and the start of the resulting error.
CASES = [
    (
        "block_size: [16",
        "blok_size: [16",
        "11: systems.walk.sweep.blok_size: unknown key; did you mean `block_size`? write one of",
    ),
    (
        "[16, 32]",
        "[16, 0]",
        "11: systems.walk.sweep.block_size.1 = 0: write a number of at least 1",
    ),
    ("[16, 32]", "[x]", "11: systems.walk.sweep.block_size.0 = 'x': write an integer"),
    ("[16, 32]", "[16, 32.0]", "11: systems.walk.sweep.block_size.1 = 32.0: write an integer"),
    ("[16, 32]", "[16, 16]", "11: systems.walk.sweep.block_size.1 = 16: is a duplicate; remove it"),
    ("[16, 32]", "[]", "11: systems.walk.sweep.block_size: is empty; write at least one entry"),
    ("[16, 32]", "16", "11: systems.walk.sweep.block_size = 16: write a list, such as [1, 2]"),
    ("[16, 32]", "[[16], 32]", "11: systems.walk.sweep.block_size.0: write single values"),
    (
        "block_size: [16, 32]",
        "walk: [of]",
        "11: systems.walk.sweep.walk.0 = 'of': did you mean `off`",
    ),
    (
        "block_size: [16",
        "heads: [mean",
        "11: systems.walk.sweep.heads: is also set in the attention",
    ),
    ("block_size: [16", "type: [x", "11: systems.walk.sweep.type: cannot be swept; write a system"),
    ("block_size: [16", "1: [16", "11: systems.walk.sweep.1: write text, in quotes if it looks"),
    ("    attention: {type: sketchwalk, heads: sum, dense_layers: 1}\n", "", "8: systems.walk.sw"),
    ("type: sketchwalk", "type: scatchwalk", "8: systems.walk.attention.type = 'scatchwalk': did"),
    ("heads: sum", "haeds: sum", "8: systems.walk.attention.haeds = 'sum': unknown key; did you"),
    (
        "  walk:\n    model: base",
        "  walk:\n    model: bse",
        "7: systems.walk.model = 'bse': unknown",
    ),
    ("  walk:", "  a walk:", "6: systems.a walk: is not a valid name; start with a letter, then"),
    ("  walk:", f"  {'walk' * 10}:", f"9: systems.{'walk' * 10}.sweep: creates a system `walk"),
    (
        "  floor: {",
        "  walk_top_k_blocks8_block_size16: {",
        "9: systems.walk.sweep: creates a system `walk_top_k_blocks8_block_size16`, which "
        "already exists",
    ),
    (
        "baseline: dense",
        "baseline: walk",
        "13: baseline = 'walk': is a family of systems; write one of walk_top",
    ),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")
    (tmp_path / "checkpoint/tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _config(systems: dict) -> dict:
    return {
        "experiment": "trial",
        "models": {"base": {"path": "owner/name"}},
        "systems": systems,
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [512],
    }


def test_a_sweep_expands_in_place_to_one_system_per_combination(folder):
    (folder / "trial.yaml").write_text(FILE)
    experiment = read_experiment("trial.yaml")
    assert list(experiment.systems) == [
        "dense",
        "walk_top_k_blocks4_block_size16",
        "walk_top_k_blocks4_block_size32",
        "walk_top_k_blocks8_block_size16",
        "walk_top_k_blocks8_block_size32",
        "floor",
    ]
    for name, system in experiment.systems.items():
        assert system.sweep is None
        assert system.family == ("walk" if name.startswith("walk") else None)
    last = experiment.systems["walk_top_k_blocks8_block_size16"]
    assert last.model == "base"
    assert (last.attention.top_k_blocks, last.attention.block_size) == (8, 16)
    assert (last.attention.heads, last.attention.dense_layers) == ("sum", 1)


def test_an_expanded_experiment_survives_a_round_trip(folder):
    (folder / "trial.yaml").write_text(FILE)
    experiment = read_experiment("trial.yaml")
    assert load_experiment(experiment.model_dump(mode="json")) == experiment


def test_values_of_all_types_form_valid_names():
    system = {
        "model": "base",
        "attention": {"type": "sketchwalk"},
        "sweep": {"density": [0.25, 1.0e-05, None], "stages": ["prefill"], "heads": ["sum"]},
    }
    systems = load_experiment(_config({"walk": system})).systems
    assert [(name, s.attention.density) for name, s in systems.items()] == [
        ("walk_density0.25_stages-prefill_heads-sum", 0.25),
        ("walk_density1e-05_stages-prefill_heads-sum", 1e-05),
        ("walk_density-null_stages-prefill_heads-sum", None),
    ]
    assert all(
        s.attention.stages == "prefill" and s.attention.heads == "sum" for s in systems.values()
    )


def test_two_sweeps_can_share_a_family():
    def swept(**attention) -> dict:
        parts = {"attention": {"type": "sketchwalk", **attention}, "sweep": {"density": [0.1, 0.2]}}
        return {"model": "base", "family": "all", **parts}

    experiment = load_experiment(_config({"a": swept(heads="sum"), "b": swept(heads="mean")}))
    assert [(name, s.family) for name, s in experiment.systems.items()] == [
        *[("a_density0.1", "all"), ("a_density0.2", "all")],
        *[("b_density0.1", "all"), ("b_density0.2", "all")],
    ]


@given(
    st.dictionaries(
        st.sampled_from(["top_k_blocks", "block_size", "seed"]),
        st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True),
        min_size=1,
    )
)
def test_each_combination_occurs_once(sweep):
    system = {"model": "base", "attention": {"type": "random"}, "sweep": sweep}
    systems = load_experiment(_config({"r": system})).systems
    expected = {}
    for values in product(*sweep.values()):
        name = "r"
        for key, value in zip(sweep, values, strict=True):
            name += f"_{key}{value}"
        expected[name] = values
    actual = {n: tuple(getattr(s.attention, k) for k in sweep) for n, s in systems.items()}
    assert actual == expected
    assert list(actual) == list(expected)


@pytest.mark.parametrize(("old", "new", "message"), CASES, ids=lambda text: text[:30])
def test_an_error_in_a_sweep_refers_to_its_line_in_the_file(folder, old, new, message):
    assert FILE.count(old) == 1
    (folder / "trial.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(ValueError, match=f"^{re.escape(f'trial.yaml:{message}')}") as caught:
        read_experiment("trial.yaml")
    actual = str(caught.value)
    # One line: reported once, not once for each system of the sweep.
    assert "\n" not in actual


def test_an_error_that_concerns_all_systems_is_reported_once(folder):
    (folder / "checkpoint/config.json").write_text('{"max_position_embeddings": 256}')
    (folder / "trial.yaml").write_text(FILE)
    with pytest.raises(ValueError, match=r"^trial\.yaml:16: lengths\.0 = 512: .*[^)]$"):
        read_experiment("trial.yaml")
