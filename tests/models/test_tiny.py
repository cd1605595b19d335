import pytest
import torch
from transformers import AutoTokenizer

from needlework.config.training import Pretrain, PretrainStage
from needlework.models.tiny import tiny_llama, word_tokenizer

TEXTS = [" cat happy-dog The", "The grass is green."]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(TEXTS, max_positions=4096)


def _config(**changes) -> Pretrain:
    stage = PretrainStage(length=64, rows=1, steps=1, exercises=["recall"])
    return Pretrain(stages=[stage], max_positions=4096, **changes)


def test_words_and_digits_are_single_tokens(tokenizer):
    assert tokenizer.tokenize("The happy-dog is 304.\n cat") == [
        *("The", "Ġhappy", "-dog", "Ġis", "Ġ", "3", "0", "4", ".", "Ċ", "Ġcat"),
    ]


@pytest.mark.parametrize("text", ["3f2a-9c", "naïve  ½\tz\n\n", "don't! x--y", "日本 cat", ""])
def test_decoding_restores_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_encoding_joined_texts_equals_joining_encoded_texts(tokenizer):
    parts = ["The grass is green.", " The zebra", "-dog is", " 71", "423", "\n", "cat?", " What"]
    separate = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)]
    assert tokenizer.encode("".join(parts), add_special_tokens=False) == separate


def test_saved_tokenizer_reopens_unchanged(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.encode("The happy-dog, 12") == tokenizer.encode("The happy-dog, 12")
    assert (opened.bos_token, opened.eos_token, opened.pad_token) == ("<s>", "</s>", "<pad>")
    assert opened.padding_side == "left"


def test_induction_initialization_attends_to_what_followed_earlier(tokenizer):
    model = tiny_llama(_config(), tokenizer, torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    words = torch.randperm(len(tokenizer) - 3, generator=generator)[:60] + 3
    ids = torch.cat([words, words[20:30]])
    with torch.no_grad():
        first, second = model(ids[None], output_attentions=True).attentions[:2]

    for head in range(4):
        attended = first[0, head].argmax(-1)[4:]
        assert torch.equal(attended, torch.arange(3 - head, 69 - head))
    # In the repetition, after its first four tokens, each position attends to the earlier
    # continuation.
    attended = second[0, :, 64:].mean(0).argmax(-1)
    assert (attended == torch.arange(25, 31)).float().mean() >= 0.8


def test_seed_determines_the_weights(tokenizer):
    def weights(seed: int):
        model = tiny_llama(_config(), tokenizer, torch.Generator().manual_seed(seed))
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_random_initialization_has_no_induction_heads(tokenizer):
    model = tiny_llama(_config(start="random"), tokenizer, torch.Generator().manual_seed(0))
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert weight.std().item() == pytest.approx(0.09, rel=0.02)


def test_indivisible_sizes_are_an_error(tokenizer):
    with pytest.raises(ValueError, match="hidden_size: 100 is not a multiple of head_size 32"):
        tiny_llama(_config(hidden_size=100), tokenizer, torch.Generator())
