"""Checkpoints are opened as they were saved, or refused with one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from needlework.config.attention.infini import Infini
from needlework.config.opening import ModelSpec
from needlework.config.rope import RopeScaling, positions_of
from needlework.models.checkpoint import open_config, open_model
from needlework.models.convert import convert
from needlework.models.tiny import word_tokenizer


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = word_tokenizer([" one two three"], 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_a_saved_model_opens_in_eval_mode(checkpoint):
    path, saved = checkpoint
    model, tokenizer = open_model(ModelSpec(path=path))
    assert not model.training
    assert tokenizer(" one two").input_ids[0] == tokenizer.bos_token_id
    for name, parameter in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_weights_have_the_requested_dtype(checkpoint):
    model, _ = open_model(ModelSpec(path=checkpoint[0], dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_converted_checkpoint_opens_with_its_own_classes(checkpoint, tmp_path):
    path, _ = checkpoint
    model, tokenizer = open_model(ModelSpec(path=path))
    infini = convert(model, Infini(segment_length=8, balance_init_type="randn"))
    infini.save_pretrained(tmp_path / "infini")
    tokenizer.save_pretrained(tmp_path / "infini")
    again, _ = open_model(ModelSpec(path=tmp_path / "infini"))
    assert type(again).__name__ == "InfiniLlamaForCausalLM"
    assert torch.equal(again.gates[0].balance_factors, infini.gates[0].balance_factors)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such folder; name an existing one"):
        open_model(ModelSpec(path=tmp_path / "nothing"))


def test_pickled_weights_are_refused_by_default(checkpoint):
    path, model = checkpoint
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be opened as a checkpoint"):
        open_model(ModelSpec(path=path))


def test_missing_weights_are_named(checkpoint):
    path, _ = checkpoint
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing .*mlp\.up_proj\.weight"):
        open_model(ModelSpec(path=path))


def test_allowed_pickled_weights_never_run_code(checkpoint):
    path, saved = checkpoint
    (path / "model.safetensors").unlink()
    torch.save(saved.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be opened as a checkpoint"):
        open_model(ModelSpec(path=path))
    model, _ = open_model(ModelSpec(path=path, allow_pickle=True))
    for name, parameter in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    torch.save({"model.norm.weight": _RunsCode(path / "was_run")}, path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="hold more than tensors and could run code"):
        open_model(ModelSpec(path=path, allow_pickle=True))
    assert not (path / "was_run").exists()


class _RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_rope_scaling_of_an_experiment_replaces_that_of_the_checkpoint(tmp_path):
    shape = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
    }
    yarn = {"rope_type": "yarn", "factor": 4.0}
    Qwen2Config(**shape).save_pretrained(tmp_path)
    config = open_config(ModelSpec(path=tmp_path, rope_scaling=RopeScaling(**yarn)))
    expected = Qwen2Config(**shape, rope_parameters={**yarn, "rope_theta": 10000.0})
    ours, theirs = Qwen2RotaryEmbedding(config), Qwen2RotaryEmbedding(expected)
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling > 1
    assert positions_of(config.to_dict()) == 2048
