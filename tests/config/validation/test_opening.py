"""Ways to open a model that are refused before any work, and their error messages."""

import json

import pytest

from needlework.config.parsing.load import load_experiment, read_experiment


@pytest.fixture
def folder(tmp_path):
    config = {"num_attention_heads": 6, "num_key_value_heads": 2, "num_local_experts": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def loaded(folder, attention=None, **keys):
    system = {"model": "m"} | ({"attention": attention} if attention else {})
    return load_experiment(
        {
            "experiment": "x",
            "models": {"m": {"path": str(folder), **keys}},
            "systems": {"s": system},
            "tasks": {"passkey": {"type": "passkey"}},
            "lengths": [512],
            "depths": [50],
            "samples": 4,
        }
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"quantization": "nf4", "device_map": "auto", "max_memory": {0: "20GiB", "cpu": "60GiB"}},
        {"device_map": "auto", "cpu_offload": True, "offload_folder": "there"},
        {"tp": 2},
        {"tp": 2, "ep": 2},
        {"ep": 4},
        {"pp": 2, "quantization": "int8"},
        {"dp": 4, "cache": "quantized", "trust_remote_code": True},
    ],
    ids=str,
)
def test_compatible_keys_are_accepted(folder, keys):
    assert loaded(folder, **keys).models["m"].opening.devices == max(
        keys.get(key, 1) for key in ("tp", "ep", "pp")
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"quantization": "int4"},
            "quantization = 'int4': did you mean `int8`? write one of nf4, fp4, int8",
        ),
        ({"max_memory": {0: "20GiB"}}, "max_memory: needs layers spread over devices"),
        ({"device_map": "auto", "max_memory": {"gpu": "2GB"}}, "unknown device gpu"),
        ({"device_map": "auto", "max_memory": {0: "2 gigs"}}, "write a number and its unit"),
        ({"cpu_offload": True}, "cpu_offload = True: needs layers spread over devices"),
        ({"tp": 4}, "tp = 4: does not divide the model's 6 num_attention_heads"),
        ({"tp": 3}, "tp = 3: does not divide the model's 2 num_key_value_heads"),
        ({"ep": 3}, "ep = 3: does not divide the model's 4 experts"),
        ({"tp": 2, "ep": 4}, "ep = 4: differs from tp; write 2"),
        ({"tp": 2, "quantization": "nf4"}, "quantization = 'nf4': does not work with tp: 2"),
        ({"ep": 2, "device_map": "auto"}, "device_map = 'auto': does not work with ep: 2"),
        ({"pp": 2, "device_map": "auto"}, "pp = 2: splits the layers itself"),
        ({"dp": 5}, "dp = 5: is above samples; write at most 4"),
    ],
    ids=str,
)
def test_incompatible_keys_are_named_in_one_line(folder, keys, message):
    with pytest.raises(ValueError, match=r"models\.m") as raised:
        loaded(folder, **keys)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_attention_system_is_refused_with_an_incompatible_cache(folder):
    window = {"type": "window", "sink_tokens": 4, "recent_tokens": 64}
    loaded(folder, window, tp=2)
    with pytest.raises(ValueError, match="cache = 'offloaded': does not work with window"):
        loaded(folder, window, cache="offloaded")
    loaded(folder, cache="offloaded")


def test_prefill_chunks_do_not_split_ranked_blocks(folder):
    walk = {"type": "sketchwalk", "top_k_blocks": 4}
    window = {"type": "window", "sink_tokens": 4, "recent_tokens": 64}
    for attention, chunk in ((walk, 128), (window, 100), (None, 100), (None, 1)):
        loaded(folder, attention, prefill_chunk_tokens=chunk)
    with pytest.raises(ValueError, match="= 100: splits blocks of 64; write a multiple of 64"):
        loaded(folder, walk, prefill_chunk_tokens=100)


def test_the_heads_of_an_infini_model_are_not_split(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"needlework_attention": "infini"}))
    loaded(folder, ep=2)
    with pytest.raises(ValueError, match="tp = 2: splits heads, which infini needs"):
        loaded(folder, tp=2)


def test_a_model_without_experts_refuses_ep(folder):
    (folder / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(ValueError, match="ep = 2: is for models with experts"):
        loaded(folder, ep=2)


def test_quantized_weights_are_not_quantized_again(folder):
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}')
    with pytest.raises(ValueError, match="already quantized by mxfp4"):
        loaded(folder, quantization="nf4")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("llama-3.1-8b", "systems.seer.attention.gates = '/path/to/seer-gates': unknown gates"),
        ("infini-checkpoint", "models.mine.path = '/path/to/infini-checkpoint': no such folder"),
    ],
)
def test_templates_name_what_to_fill_in(file, message):
    with pytest.raises(ValueError, match=r"write|name|/path") as raised:
        read_experiment(f"config/{file}.yaml")
    assert message in str(raised.value)


def test_the_scout_experiment_is_complete():
    experiment = read_experiment("config/scout-10m.yaml")
    assert experiment.models["scout"].quantization == "nf4"
    assert experiment.models["scout"].prefill_chunk_tokens == 8192
    assert experiment.lengths[-1] == 40_000_000
