import numpy as np
import pytest
import torch
from datasets import Dataset
from support.streamed_models import make
from support.streaming import IDS, read_documents, text_of

from needlework.evaluation import StreamingEvaluator
from needlework.evaluation.streaming.document_reader import (
    DocumentReader,
    documents_of,
    known_token_count,
)


def test_ids_rows_and_texts_are_accepted(tokenizer, tmp_path):
    evaluator = StreamingEvaluator(make("llama"), 50, device="cpu", verbose=False)
    expected = evaluator.evaluate_streaming(IDS)["loss"]
    rows = Dataset.from_dict({"input_ids": [IDS[:120].tolist(), IDS[120:].tolist()]})
    for data in (
        [*IDS],
        {"input_ids": torch.from_numpy(IDS)[None]},
        rows,
        rows.to_iterable_dataset(),
        ([int(i)] for i in IDS),
    ):
        assert evaluator.evaluate_streaming(data)["loss"] == pytest.approx(expected, abs=1e-6)
    (tmp_path / "x.txt").write_text(text_of(IDS[1:]))
    with pytest.raises(ValueError, match=r"x.txt: holds text; pass a tokenizer"):
        evaluator.evaluate_streaming(tmp_path / "x.txt")
    texts = Dataset.from_dict({"text": [text_of(IDS[1:])]})
    first = IDS.copy()
    first[0] = 0
    expected = evaluator.evaluate_streaming(first)["loss"]
    evaluator.tokenizer = tokenizer
    for data in (tmp_path / "x.txt", [text_of(IDS[1:])], texts, texts.to_iterable_dataset()):
        assert evaluator.evaluate_streaming(data)["loss"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"^data: has neither input_ids nor text, but story;"):
        evaluator.evaluate_streaming(Dataset.from_dict({"story": ["w3 w4"]}))
    evaluator.tokenizer = "w"
    with pytest.raises(ValueError, match=r"^tokenizer: str is not supported; pass"):
        evaluator.evaluate_streaming(["w3 w4"])


@pytest.mark.parametrize(
    ("data", "limit", "tokens"),
    [
        (IDS, None, 500),
        (torch.from_numpy(IDS), 20, 20),
        ([3, 4, 5], 20, 3),
        (np.zeros((2, 9), int), None, None),
        (iter([IDS]), None, None),
        ("x.bin", 30, 30),
    ],
)
def test_the_number_of_tokens_is_known_for_ids_and_limits(data, limit, tokens):
    assert known_token_count(data, limit) == tokens


def test_the_reader_peeks_and_advances():
    def pieces():
        yield from np.array_split(IDS, 9)

    reader = DocumentReader(pieces(), 61)
    assert reader.peek(5).tolist() == IDS[:5].tolist()
    assert reader.peek(120).tolist() == IDS[:120].tolist()
    reader.advance(100)
    assert reader.peek(30).tolist() == IDS[100:130].tolist()
    reader.advance(310)
    assert (reader.position, reader.peek(3).tolist()) == (410, IDS[410:413].tolist())
    assert reader.peek(1000).tolist() == IDS[410:].tolist()
    reader.advance(90)
    assert reader.peek(1).tolist() == []


def test_documents_of_every_kind_of_data():
    tensor = torch.from_numpy(IDS)
    for data in (IDS, tensor, tensor.int(), IDS.tolist(), tuple(IDS.tolist())):
        assert read_documents(documents_of(data, True, None)) == [IDS.tolist()]
    parts = [IDS[:200], tensor[200:]]
    assert read_documents(documents_of(parts, True, None)) == [IDS.tolist()]
    separate = [IDS[:200].tolist(), IDS[200:].tolist()]
    assert read_documents(documents_of(parts, False, None)) == separate
    assert read_documents(documents_of((part for part in parts), False, 300)) == [
        separate[0],
        separate[1][:100],
    ]
    assert read_documents(documents_of(parts, False, 200)) == separate[:1]
    assert read_documents(documents_of(parts, True, 300)) == [IDS[:300].tolist()]
