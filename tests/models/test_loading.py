"""Error messages for checkpoints that cannot be opened."""

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
    """A copy of a checkpoint for a test to break."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


def error_of(path, **keys) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        open_model(ModelSpec(path=path, opening=Opening(**keys)))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    return str(raised.value).removeprefix(f"{path}: ")


def test_a_folder_without_config(checkpoint):
    (checkpoint / "config.json").unlink()
    assert error_of(checkpoint).startswith("has no config.json; name a folder")


def test_a_hub_name_without_a_network(monkeypatch):
    hub.unreachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = error_of("nobody/nothing")
    assert message.startswith(
        "no such folder, and the hub cannot be reached (HF_HUB_OFFLINE is set, as"
    )


def test_remote_code_runs_only_if_trusted(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    config["auto_map"]["AutoModelForCausalLM"] = "mine.Model"
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "mine.py").write_text(CODE)
    assert "write trust_remote_code: true if you have read it" in error_of(checkpoint)
    model, _ = open_model(ModelSpec(path=checkpoint, opening=Opening(trust_remote_code=True)))
    assert type(model).__name__ == "Model"


def test_a_missing_bitsandbytes_is_named(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = error_of(whole, quantization="nf4")
    assert (
        "needs bitsandbytes, which is not installed; run pip install 'needlework[quant" in message
    )


@pytest.mark.parametrize(
    "code",
    [
        'import ctypes; ctypes.CDLL("libnowhere.so")',
        "from torch import nothing_of_this_name",
        "import torch; torch.nothing_of_this_name",
        'raise RuntimeError("failed to load backend")',
    ],
)
def test_a_broken_bitsandbytes_is_named(whole, tmp_path, monkeypatch, code):
    (tmp_path / "bitsandbytes.py").write_text(code)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    message = error_of(whole, quantization="nf4")
    assert message.startswith("quantization = 'nf4': bitsandbytes does not load here (")
    assert message.endswith("; reinstall it for this machine's CUDA, or remove quantization")


def test_quantized_weights_that_do_not_fit(whole):
    message = error_of(whole, quantization="nf4", device_map="auto", max_memory={"cpu": "1MB"})
    assert message.startswith("its weights do not fit; write more max_memory, or offload_folder")


@pytest.mark.usefixtures("no_gpu")
def test_max_memory_of_a_missing_gpu(whole):
    message = error_of(whole, device_map="auto", max_memory={"0": "2GB", "cpu": "20GB"})
    assert message.startswith("max_memory: names GPU 0, counted from 0, and torch sees 0 here")


@pytest.mark.parametrize(
    "config",
    [
        config_of("mamba2"),  # transformers does not fill its cache in chunks
        CONFIG_MAPPING["jamba"](),  # resets its state between chunks
        config_of("llama", rope_parameters={"rope_type": "dynamic", "factor": 4.0}),
        config_of("phi3"),  # longrope
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_cannot_prefill_in_chunks(config, tmp_path):
    config.save_pretrained(tmp_path)
    message = error_of(tmp_path, prefill_chunk_tokens=64)
    assert message.startswith("prefill_chunk_tokens = 64: is for models that cache only keys and")


def test_an_attention_kernel_that_is_not_installed(whole):
    message = error_of(whole, attn_implementation="flash_attention_3")
    assert message.startswith("attn_implementation = 'flash_attention_3': is not available here (")
    assert message.endswith("; remove it")


@pytest.mark.parametrize(
    ("keys", "prompt", "remedies"),
    [
        ({}, 1000, ["lengths below 1000", "cache: quantized", "quantization: nf4", "tp: 2"]),
        ({"tp": 2}, None, ["tp: 4"]),
        ({}, 10_000, ["prefill_chunk_tokens: 8192"]),
        ({"prefill_chunk_tokens": 64}, 10_000, ["lengths below 10000"]),
        ({"quantization": "nf4", "device_map": "auto"}, None, ["a smaller model"]),
    ],
    ids=str,
)
def test_out_of_memory_names_only_unused_remedies(keys, prompt, remedies):
    message = out_of_memory(Opening(**keys), prompt)
    assert all(remedy in message for remedy in remedies)
    for key in keys:
        assert f"{key}: {keys[key]}" not in message
