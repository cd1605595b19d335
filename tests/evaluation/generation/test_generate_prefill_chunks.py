"""Chunked prefill gives the answers, densities and cache of one forward."""

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.random_checkpoints import save_checkpoint

from needlework.attention.seer.gates import Gates
from needlework.config.attention.base import Ranked
from needlework.config.attention.registry import AnyAttention
from needlework.config.opening import ModelSpec
from needlework.evaluation.generation.generate import generate_answers
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.models.loading import KEEPS_STATE

pytestmark = pytest.mark.slow

BLOCKS = {"block_size": 16, "dense_layers": 1}
WORDS = ("needle", "in", "a", "stack", "of", "hay", "nobody", "has", "seen", "it", "since", "then")
CASES = {
    "llama": ("llama", None),
    "llama 4": ("llama4", None),
    "mixtral": ("mixtral", None),
    "gpt-oss": ("gpt_oss", None),
    "sliding": ("gemma3_text", None),
    "sketchwalk": ("llama", {"type": "sketchwalk", "top_k_blocks": 3, **BLOCKS}),
    "official": ("llama", {"type": "sketchwalk", "preset": "official", **BLOCKS}),
    "seer": ("llama", {"type": "seer", "gates": "", "nz_ratio": 0.3, **BLOCKS}),
    "window": ("llama", {"type": "window", "recent_tokens": 40, "sink_tokens": 4, **BLOCKS}),
    "xattention": ("llama", {"type": "xattention", "density": 0.3, "stride": 4, **BLOCKS}),
    "oracle": ("llama", {"type": "oracle", "top_k_blocks": 3, **BLOCKS}),
    "random": ("llama4", {"type": "random", "density": 0.3, "block_size": 16, "dense_layers": 0}),
    "infini": ("llama", {"type": "infini", "segment_length": 32}),
    **{family: (family, None) for family in sorted(KEEPS_STATE)},
    "sketchwalk with states": (
        "qwen3_next",
        {"type": "sketchwalk", "top_k_blocks": 3, "block_size": 16, "dense_layers": 0},
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def checkpoint(family):
        if family not in made:
            made[family] = save_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return checkpoint


def _samples(tokenizer, counts) -> pl.DataFrame:
    rows = []
    for sample, count in enumerate(counts):
        prompt = " ".join(WORDS[(sample + i * i) % len(WORDS)] for i in range(count))
        tokens = len(tokenizer(prompt)["input_ids"])
        rows.append({"task": "key", "length": 256, "sample": sample, "prompt": prompt})
        rows[-1] |= {"tokens": tokens, "max_new_tokens": 5}
    return pl.DataFrame(rows)


@pytest.mark.parametrize("name", CASES)
def test_chunked_prefill_matches_one_forward(name, checkpoints, tmp_path):
    family, parameters = CASES[name]
    model, tokenizer = open_model(ModelSpec(path=checkpoints(family)))
    samples = _samples(tokenizer, [123, 40])
    if name == "seer":
        Gates.new(model, block_size=16).save(tmp_path)
        parameters = parameters | {"gates": str(tmp_path)}
    attention = TypeAdapter(AnyAttention | None).validate_python(parameters)
    if name == "infini":
        model, attention = convert(model, attention), None

    def answers(chunk):
        return generate_answers(
            model,
            tokenizer,
            samples,
            system="s",
            attention=attention,
            prefill_chunk_tokens=chunk,
        )

    expected, _, expected_densities = answers(None)
    assert samples["tokens"].to_list() == [129, 77]
    # A last chunk of one token is not a decode step; chunks of ranked systems are whole blocks.
    for chunk in (128, 48 if isinstance(attention, Ranked) else 37):
        predictions, _, densities = answers(chunk)
        assert predictions.equals(expected)
        assert densities.equals(expected_densities)
