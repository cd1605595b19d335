"""Pad tokens that tokenizer, config and generation_config state differently."""

import copy

import pytest
from support.paths import TINY
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from needlework.config.opening import ModelSpec
from needlework.models.checkpoint import open_model, save_model
from needlework.models.special_ids import pad_id
from needlework.tasks.prompts.tokenizer import open_tokenizer

SHAPE = {
    **{"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": 5, "bos_token_id": 1},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=open_tokenizer(TINY), eos_token="</s>")


@pytest.mark.parametrize(
    ("own", "generation", "config", "expected"),
    [
        ("<pad>", 7, 9, 0),
        (None, 7, 9, 7),
        (None, None, 9, 9),
        (None, None, None, 5),
        ("[PAD]", None, 9, 9),
        ("[PAD]", 20, None, 5),
    ],
)
def test_padding_has_an_embedding(tokenizer, own, generation, config, expected):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=config))
    model.generation_config.pad_token_id = generation
    own_tokenizer = copy.deepcopy(tokenizer)
    if own is not None:
        own_tokenizer.add_special_tokens({"pad_token": own})
    assert pad_id(model, own_tokenizer) == expected


@pytest.mark.parametrize("pad", [20, -1])
def test_a_checkpoint_with_a_pad_token_past_its_embeddings_opens(tmp_path, tokenizer, pad):
    save_model(LlamaForCausalLM(LlamaConfig(**SHAPE)), tokenizer, tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    config.pad_token_id = pad
    config.save_pretrained(tmp_path)
    model, _ = open_model(ModelSpec(path=str(tmp_path)), device="cpu")
    assert model.get_input_embeddings().padding_idx is None
    assert pad_id(model, tokenizer) == 5
