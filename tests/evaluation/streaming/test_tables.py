"""Tables of a stream: whether its perplexity is a likelihood."""

import numpy as np
import pytest
import torch
from support.tiny_models import tiny

from needlework import Infini, Random, SketchWalk, StreamingEvaluator, Window
from needlework.config.attention.infini import InfiniAlignment
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.kv_state import segment_arguments
from needlework.evaluation.streaming.tables import stream_tables
from needlework.models.convert import convert

BLOCKS = {"block_size": 4, "top_k_blocks": 2, "dense_layers": 0}


@pytest.mark.parametrize(
    ("attention", "own", "expected"),
    [
        (None, None, True),
        (SketchWalk(**BLOCKS), None, False),
        (SketchWalk(choose="causal", **BLOCKS), None, True),
        (SketchWalk(stages="decode", **BLOCKS), None, True),
        (Random(**BLOCKS), None, True),
        (Window(recent_tokens=8), None, True),
        (None, Infini(segment_length=8), True),
        (None, Infini(segment_length=8, segment_alignment="end"), True),
        (
            InfiniAlignment(segment_alignment="start"),
            Infini(segment_length=8, segment_alignment="end"),
            True,
        ),
    ],
)
def test_the_evaluator_says_whether_its_perplexity_is_a_likelihood(attention, own, expected):
    model = tiny("llama") if own is None else convert(tiny("llama"), own)
    assert StreamingEvaluator(model, 16, attention=attention).is_likelihood == expected


def test_windows_of_segments_that_end_with_the_text_give_no_likelihood():
    model = convert(tiny("llama"), Infini(segment_length=8, segment_alignment="end"))
    assert not StreamingEvaluator(model, 16, overlap=8).is_likelihood


def test_segments_of_a_stream_do_not_depend_on_where_it_ends():
    model = convert(tiny("llama"), Infini(segment_length=8, segment_alignment="end")).eval()
    ids = torch.arange(31)[None] % 60
    with torch.inference_mode():
        short, long = (
            model(part, **segment_arguments(model)).logits[:, :20] for part in (ids[:, :20], ids)
        )
        aligned = model(ids).logits[:, :20]
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)
    assert (aligned - long).abs().max() > 1e-3


def test_chunks_say_whether_their_loss_is_a_likelihood(tmp_path):
    evaluator = StreamingEvaluator(tiny("llama"), 16, attention=SketchWalk(**BLOCKS), verbose=False)
    chunks, *_ = stream_tables(
        evaluator,
        np.arange(40) % 60,
        system="walk",
        stream="text",
        shard=0,
        checkpoint=StreamCheckpoint(tmp_path / "state", ""),
    )
    assert chunks["is_likelihood"].to_list() == [False] * len(chunks)
