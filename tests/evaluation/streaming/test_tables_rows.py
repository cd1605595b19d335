"""Tables of a stream, against losses of one pass."""

import numpy as np
import pytest
from support.streamed_models import make
from support.streaming import evaluator_of, one_pass_losses, random_ids

from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.tables import stream_tables

DOCUMENTS = [random_ids(50, 1), random_ids(33, 2)]
KEY = {"system": "dense", "stream": "books", "shard": 3}


def tables(documents, folder):
    evaluator = evaluator_of(make("llama"), 16, separate_documents=True)
    checkpoint = StreamCheckpoint(folder / "state", "key")
    return stream_tables(evaluator, documents, **KEY, checkpoint=checkpoint)


def test_rows_are_chunks_and_spans_with_their_losses(tmp_path):
    chunks, positions, measurements = tables(DOCUMENTS, tmp_path)
    model = make("llama")
    losses = [one_pass_losses(model, ids) for ids in DOCUMENTS]
    for table in (chunks, positions, measurements):
        assert {name: set(table[name]) for name in KEY} == {k: {v} for k, v in KEY.items()}
    assert chunks["chunk"].to_list() == list(range(len(chunks)))
    # The last token of a document is scored without being read.
    assert chunks["tokens_read"].sum() == 49 + 32
    assert chunks["tokens"].sum() == measurements["tokens"].sum() == 49 + 32
    assert set(chunks["mode"]) == {"cache"}
    total = sum(row["tokens"] * row["loss"] for row in chunks.iter_rows(named=True))
    assert total == pytest.approx(sum(map(sum, losses)), rel=1e-5)
    for document, expected in enumerate(losses):
        rows = chunks.filter(document=document)
        assert rows["first_token"].is_sorted()
        first = rows.row(0, named=True)
        assert first["loss"] == pytest.approx(np.mean(expected[: first["tokens"]]), rel=1e-5)
    # The token at position p has loss p - 1 of its document.
    for row in positions.iter_rows(named=True):
        span = [
            loss
            for expected in losses
            for place, loss in enumerate(expected, 1)
            if row["first_position"] <= place < row["end_position"]
        ]
        assert row["tokens"] == len(span)
        assert row["loss"] == pytest.approx(np.mean(span), rel=1e-5)
    assert measurements["seconds"].min() >= 0
    assert measurements["memory_bytes"].min() > 0


def test_a_text_without_a_token_to_score_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stream books: shard 3 has no token to score; it needs"):
        tables([random_ids(1)], tmp_path)
