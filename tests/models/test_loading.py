"""Checkpoints that cannot be opened: the one line that says why, and what to do."""

import json
import shutil
import sys

import pytest
from support.families import config_of
from support.random_checkpoints import save_checkpoint
from transformers import CONFIG_MAPPING

from needlework.config.opening import ModelSpec, Opening
from needlework.models.checkpoint import open_model
from needlework.models.loading import out_of_memory
from needlework.sources import hub

CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class Config(Qwen3Config):
    model_type = "mine"

class Model(Qwen3ForCausalLM):
    config_class = Config
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("whole"), "qwen3")


@pytest.fixture
def checkpoint(whole, tmp_path):
    """A folder to be spoilt."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


def line(path, **keys) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        open_model(ModelSpec(path=path, opening=Opening(**keys)))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    return str(raised.value).removeprefix(f"{path}: ")


def test_a_folder_without_config(checkpoint):
    (checkpoint / "config.json").unlink()
    assert line(checkpoint).startswith("has no config.json; name a folder")


def test_a_hub_name_without_a_network(monkeypatch):
    hub.unreachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = line("nobody/nothing")
    assert told.startswith(
        "no such folder, and the hub cannot be reached (HF_HUB_OFFLINE is set, as"
    )


def test_code_of_its_own_is_run_only_where_that_is_allowed(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    config["auto_map"]["AutoModelForCausalLM"] = "mine.Model"
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text(CODE)
    assert "write trust_remote_code: true if you have read it" in line(checkpoint)
    model, _ = open_model(ModelSpec(path=checkpoint, opening=Opening(trust_remote_code=True)))
    assert type(model).__name__ == "Model"


def test_bitsandbytes_that_is_not_installed(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    told = line(whole, quantization="nf4")
    assert "needs bitsandbytes, which is not installed; run pip install 'needlework[quant" in told


@pytest.mark.parametrize(
    "code",
    [
        'import ctypes; ctypes.CDLL("libnowhere.so")',
        "from torch import nothing_of_this_name",
        "import torch; torch.nothing_of_this_name",
        'raise RuntimeError("failed to load backend")',
    ],
)
def test_bitsandbytes_that_does_not_load(whole, tmp_path, monkeypatch, code):
    (tmp_path / "bitsandbytes.py").write_text(code)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    told = line(whole, quantization="nf4")
    assert told.startswith("quantization = 'nf4': bitsandbytes does not load here (")
    assert told.endswith("; reinstall it for this machine's CUDA, or remove quantization")


def test_weights_in_few_bits_that_do_not_fit(whole):
    told = line(whole, quantization="nf4", device_map="auto", max_memory={"cpu": "1MB"})
    assert told.startswith("its weights do not fit; write more max_memory, or offload_folder")


@pytest.mark.usefixtures("no_gpu")
def test_memory_of_a_gpu_that_is_not_there(whole):
    told = line(whole, device_map="auto", max_memory={"0": "2GB", "cpu": "20GB"})
    assert told.startswith("max_memory: names GPU 0, counted from 0, and torch sees 0 here")


@pytest.mark.parametrize(
    "config",
    [
        config_of("mamba2"),  # whose cache transformers does not fill in chunks
        CONFIG_MAPPING["jamba"](),  # forgets its state at a chunk's edge
        config_of("llama", rope_parameters={"rope_type": "dynamic", "factor": 4.0}),
        config_of("phi3"),  # of longrope
    ],
    ids=lambda config: config.model_type,
)
def test_prompts_that_cannot_come_in_chunks(config, tmp_path):
    config.save_pretrained(tmp_path)
    told = line(tmp_path, prefill_chunk_tokens=64)
    assert told.startswith("prefill_chunk_tokens = 64: is for models that cache only keys and")


def test_attention_that_is_not_installed(whole):
    told = line(whole, attn_implementation="flash_attention_3")
    assert told.startswith("attn_implementation = 'flash_attention_3': is not available here (")
    assert told.endswith("; remove it")


@pytest.mark.parametrize(
    ("keys", "prompt", "ways"),
    [
        ({}, 1000, ["lengths below 1000", "cache: quantized", "quantization: nf4", "tp: 2"]),
        ({"tp": 2}, None, ["tp: 4"]),
        ({}, 10_000, ["prefill_chunk_tokens: 8192"]),
        ({"prefill_chunk_tokens": 64}, 10_000, ["lengths below 10000"]),
        ({"quantization": "nf4", "device_map": "auto"}, None, ["a smaller model"]),
    ],
    ids=str,
)
def test_memory_that_runs_out_names_what_is_not_done_yet(keys, prompt, ways):
    told = out_of_memory(Opening(**keys), prompt)
    assert all(way in told for way in ways)
    for key in keys:
        assert f"{key}: {keys[key]}" not in told
