import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from needlework.config.training import Pretrain, PretrainStage
from needlework.models.checkpoint import save_model
from needlework.models.tiny import tiny_llama, word_tokenizer
from needlework.training.curriculum import IGNORED, batches, vocabulary
from needlework.training.pretrain import answer_and_text_losses, pretrain

pytestmark = pytest.mark.slow

CONFIG = Pretrain(
    stages=[
        PretrainStage(length=64, rows=4, steps=3, exercises=["recall"]),
        PretrainStage(length=128, rows=2, steps=3, exercises=["passkey", "sentences"], jumps=0.5),
    ],
    layers=2,
    log_every=2,
)


def test_pretrained_model_opens_as_a_plain_llama_and_is_reproducible(tmp_path):
    model, tokenizer, metrics, measurements = pretrain(CONFIG, 7)
    again, _, metrics_again, _ = pretrain(CONFIG, 7)
    save_model(model, tokenizer, tmp_path / "first")
    save_model(again, tokenizer, tmp_path / "again")

    assert metrics.equals(metrics_again)
    assert metrics["step"].to_list() == measurements["step"].to_list() == [1, 2, 4, 6]
    assert metrics["tokens"][-1] == 3 * 4 * 64 + 3 * 2 * 128
    assert {"loss", "answer_loss", "text_loss", "learning_rate"} <= set(metrics.columns)
    weights = [tmp_path / run / "model.safetensors" for run in ("first", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    size = sum(file.stat().st_size for file in (tmp_path / "first").iterdir())
    assert size <= 16 * 2**20

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert type(model) is LlamaForCausalLM
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.config.max_position_embeddings == CONFIG.max_positions
    inputs = tokenizer("The grass is green.", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > 6


def test_losses_use_the_softmax_over_candidates():
    tokenizer = word_tokenizer(vocabulary(), max_positions=4096)
    model = tiny_llama(CONFIG, tokenizer, torch.Generator().manual_seed(0))
    batch = next(batches(CONFIG, tokenizer, seed=0))
    with torch.no_grad():
        losses = answer_and_text_losses(model, batch, batch)
        logits = model(batch["input_ids"]).logits
    for value, name in zip(losses, ("labels", "text_labels"), strict=True):
        terms = []
        for row, targets in enumerate(batch[name]):
            for place, target in enumerate(targets[1:]):
                if target != IGNORED:
                    scores = log_softmax(logits[row, place, batch["candidates"][0]], -1)
                    terms.append(-scores[batch["candidates"][0] == target])
        torch.testing.assert_close(value, torch.cat(terms).mean())
