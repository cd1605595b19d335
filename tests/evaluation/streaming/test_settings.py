import pytest
import torch
from support.streamed_models import VOCABULARY, make
from support.streaming import evaluator_of, random_ids
from transformers import T5Config, T5ForConditionalGeneration

from needlework.evaluation import (
    StreamingEvaluator,
)

T5 = T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)


def test_invalid_arguments_are_one_line_errors(tmp_path):
    model = make("llama")
    for other, message in (
        ("gpt2", "model: str is not a torch module; pass an AutoModelForCausalLM"),
        (model.model, "model: LlamaModel has no head; pass an AutoModelForCausalLM"),
        (T5ForConditionalGeneration(T5), "model: T5ForConditionalGeneration has an encoder; pass"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            StreamingEvaluator(other)
    for kwargs, message in (
        ({"chunk_size": 8, "overlap": 8}, "overlap 8: is not below chunk_size 8; write at most 7"),
        ({"chunk_size": 0}, "chunk_size 0: write an integer of at least 1, or None"),
        ({"chunk_size": 8, "overlap": -1}, "overlap -1: write an integer of at least 0"),
        ({"chunk_size": 8.5}, "chunk_size 8.5: write an integer"),
        ({"chunk_size": "8"}, "chunk_size '8': write an integer"),
        ({"device": "gpu"}, "device 'gpu': is not available .*; write cpu, cuda, or None$"),
        ({"device": "cuda:77"}, "device 'cuda:77': is not available"),
        (
            {"chunk_size": 8, "window_batch_size": 0},
            "window_batch_size 0: write an integer of at least 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            StreamingEvaluator(model, **{"device": "cpu", **kwargs})
    evaluator = evaluator_of(model, 50)
    ids = random_ids(200)
    with pytest.raises(ValueError, match=r"^log_interval 0: write an integer of at least 1"):
        evaluator.evaluate_streaming(ids, log_interval=0)
    ids[123] = VOCABULARY
    with pytest.raises(ValueError, match=r"^token 123: id 61 is outside .* vocabulary of 61;"):
        evaluator.evaluate_streaming(ids)
    ids[123] = -1
    with pytest.raises(ValueError, match=r"^token 123: id -1 "):
        evaluator.evaluate_streaming(ids)
    for data in ([], torch.empty(0, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^data: is empty"):
            evaluator.evaluate_streaming(data)
    with pytest.raises(ValueError, match=r"^data: float32 of shape"):
        evaluator.evaluate_streaming(torch.rand(8))
    with pytest.raises(ValueError, match=r"^data: object does not hold tokens"):
        evaluator.evaluate_streaming(object())
