import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import Dataset
from support.paths import TINY
from support.streamed_models import make
from support.streaming import IDS, read_documents, text_of
from support.toy_tokenizers import merging_newlines

from needlework.evaluation import StreamingEvaluator
from needlework.evaluation.streaming import token_source
from needlework.evaluation.streaming.token_source import (
    TokenFile,
    encoded,
    token_documents,
    write_tokens,
)
from needlework.tasks.prompts.tokenizer import open_tokenizer


@pytest.mark.parametrize("kind", ["uint16", "uint32", "npy"])
def test_token_files_are_mapped_piece_by_piece(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(token_source, "PIECE_TOKENS", 64)
    if kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, IDS.astype(np.int32))
    else:
        path = tmp_path / "x.bin"
        IDS.astype(kind).tofile(path)
    dtype = "uint16" if kind == "npy" else kind
    file = TokenFile(path, dtype)
    assert len(file) == 500
    (pieces,) = file
    pieces = list(pieces)
    assert [len(piece) for piece in pieces] == [64] * 7 + [52]
    # Pieces are copies: mapped pages of the file would count as memory.
    assert all(piece.flags.owndata and type(piece) is np.ndarray for piece in pieces)
    assert read_documents(file) == [IDS.tolist()]
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert read_documents(token_documents(path, dtype=dtype)) == [IDS.tolist()]


def test_documents_of_a_token_file_follow_separators_or_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(token_source, "PIECE_TOKENS", 7)
    ids = IDS.copy()
    ids[[9, 10, 200]] = 2
    ids.astype(np.uint16).tofile(tmp_path / "x.bin")
    expected = [ids[:10].tolist(), [2], ids[11:201].tolist(), ids[201:].tolist()]
    assert read_documents(TokenFile(tmp_path / "x.bin", separator=2)) == expected
    assert (
        read_documents(TokenFile(tmp_path / "x.bin", starts=np.array([0, 10, 11, 201]))) == expected
    )
    ids[-1] = 2
    ids.astype(np.uint16).tofile(tmp_path / "x.bin")
    assert read_documents(TokenFile(tmp_path / "x.bin", separator=2))[-1] == ids[201:].tolist()
    (tmp_path / "x.bin").rename(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", IDS)
    assert len(read_documents(token_documents(tmp_path, separator=2))) == 4 + 1


def test_invalid_token_files_are_errors(tmp_path):
    def fails(path, match, **kwargs):
        with pytest.raises(ValueError, match=f"^{path}: {match}"):
            read_documents(TokenFile(path, **kwargs))

    path = tmp_path / "x.bin"
    fails(path, "no such file")
    path.touch()
    fails(path, "is empty")
    path.write_bytes(bytes(999))
    fails(path, "999 bytes are not a whole number of uint16 tokens; the file is truncated")
    path.write_bytes(bytes(1002))
    fails(path, "1002 bytes are not a whole number of uint32", dtype="uint32")
    path = tmp_path / "x.npy"
    np.save(path, IDS)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 40):
        path.write_bytes(whole[:cut])
        fails(path, "is truncated or not a .npy file")
    np.save(path, IDS.reshape(2, -1))
    fails(path, r"holds int64 of shape \(2, 250\); write token ids")
    np.save(path, IDS / 2)
    fails(path, "holds float64")
    np.save(path, IDS[:0])
    fails(path, "is empty")


def test_a_file_truncated_during_a_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(token_source, "PIECE_TOKENS", 100)
    path = tmp_path / "x.bin"
    IDS.astype(np.uint16).tofile(path)
    evaluator = StreamingEvaluator(make("infini"), 50, device="cpu", verbose=False)
    chunks = evaluator.chunks(path)
    next(chunks)
    with path.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ValueError, match=r"x.bin: was truncated while being read, at token"):
        list(chunks)


def test_each_row_of_a_table_is_a_document(tmp_path, tokenizer):
    parts = [IDS[:20].tolist(), IDS[20:300].tolist(), IDS[300:].tolist()]
    pl.DataFrame({"input_ids": parts, "text": ["x"] * 3}).write_parquet(tmp_path / "ids.parquet")
    assert read_documents(token_documents(tmp_path / "ids.parquet")) == parts
    Dataset.from_dict({"input_ids": parts}).save_to_disk(tmp_path / "saved")
    assert read_documents(token_documents(tmp_path / "saved")) == parts
    texts = [text_of(part) for part in parts]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "text.jsonl").write_text(lines)
    pl.DataFrame({"words": texts}).write_parquet(tmp_path / "text.parquet")
    expected = [[0, *part] for part in parts]
    assert read_documents(token_documents(tmp_path / "text.jsonl", tokenizer)) == expected
    table = token_documents(tmp_path / "text.parquet", tokenizer, column="words")
    assert read_documents(table) == expected
    assert tokenizer.truncation is not None
    for path, kwargs, match in (
        ("text.jsonl", {}, r"holds text; pass a tokenizer"),
        ("ids.parquet", {"column": "nothing"}, r"no column 'nothing'; write one of input_ids, "),
        ("text.parquet", {}, r"no column 'input_ids' or 'text'; write one of words"),
        ("none.parquet", {}, r"no such file or folder"),
    ):
        with pytest.raises(ValueError, match=match):
            read_documents(token_documents(tmp_path / path, **kwargs))
    pl.DataFrame({"input_ids": [[0.5]]}).write_parquet(tmp_path / "half.parquet")
    with pytest.raises(ValueError, match=r"row 0 holds \[0.5\], which is neither text nor token"):
        read_documents(token_documents(tmp_path / "half.parquet"))
    cut = (tmp_path / "ids.parquet").read_bytes()
    (tmp_path / "ids.parquet").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match=r"ids.parquet: cannot be read as parquet"):
        read_documents(token_documents(tmp_path / "ids.parquet"))
    pl.DataFrame({"input_ids": [[], []]}, schema={"input_ids": pl.List(pl.Int64)}).write_parquet(
        tmp_path / "empty.parquet"
    )
    with pytest.raises(ValueError, match=r"empty.parquet: is empty"):
        read_documents(token_documents(tmp_path / "empty.parquet"))


def test_a_text_file_is_one_document(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("needlework.sources.texts._PART_BYTES", 64)
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").touch()
    for name, ids in (("a.txt", IDS[:200]), ("b/c.txt", IDS[200:])):
        lines = [text_of(part) for part in np.array_split(ids, 20)]
        (tmp_path / name).write_text("\n\n".join(lines))
    expected = [[0, *IDS[:200].tolist()], [0, *IDS[200:].tolist()]]
    documents = list(token_documents(tmp_path, tokenizer))
    first = list(documents[0])
    assert len(first) > 5
    assert np.concatenate(first).tolist() == expected[0]
    assert read_documents(documents[1:]) == expected[1:]
    assert read_documents(token_documents(tmp_path / "a.txt", tokenizer)) == expected[:1]


def test_written_tokens_round_trip(tmp_path):
    documents = [[IDS[:3], IDS[3:10]], [IDS[:0]], [IDS[10:50]], [IDS[50:]]]
    starts = write_tokens(documents, tmp_path / "x.npy", None)
    assert starts == [0, 10, 50]
    assert np.load(tmp_path / "x.npy").tolist() == IDS.tolist()
    assert np.load(tmp_path / "x.npy").dtype == np.uint32
    file = TokenFile(tmp_path / "x.npy", starts=np.array(starts))
    assert read_documents(file) == [IDS[:10].tolist(), IDS[10:50].tolist(), IDS[50:].tolist()]
    assert write_tokens(documents, tmp_path / "x.npy", 50) == [0, 10]
    assert np.load(tmp_path / "x.npy").tolist() == IDS[:50].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    with pytest.raises(ValueError, match=r"^no tokens: .* fewer documents than shards; "):
        write_tokens([[IDS[:0]]], tmp_path / "x.npy", None)
    with pytest.raises(ValueError, match=r"^token id -4: is out of range"):
        write_tokens([[np.array([3, -4])]], tmp_path / "x.npy", None)


def test_streams_from_disk_and_memory_agree(tmp_path: Path):
    IDS.astype(np.uint16).tofile(tmp_path / "x.bin")
    pl.DataFrame({"input_ids": [IDS.tolist()]}).write_parquet(tmp_path / "x.parquet")
    evaluator = StreamingEvaluator(make("infini"), device="cpu", verbose=False)
    expected = evaluator.evaluate_streaming(IDS)
    for name in ("x.bin", "x.parquet"):
        assert evaluator.evaluate_streaming(tmp_path / name)["loss"] == expected["loss"]


def test_special_tokens_stand_at_the_ends_of_a_text_in_parts():
    tokenizer, parts = merging_newlines(), ["The grass", " is green.", " The sky is blue."]
    pieces = [tokenizer.encode(part, add_special_tokens=False).ids for part in parts]
    ids = np.concatenate([*encoded(parts, tokenizer)]).tolist()
    assert ids == [0, *(i for piece in pieces for i in piece), 1]


def test_start_of_documents_is_chosen(tmp_path):
    tokenizer = merging_newlines()
    (tmp_path / "x.txt").write_text("a b")
    (bare,) = read_documents(token_documents(tmp_path / "x.txt", tokenizer, start_ids=[]))
    assert read_documents(token_documents(tmp_path / "x.txt", tokenizer, start_ids=[1])) == [
        [1, *bare]
    ]
    np.save(tmp_path / "x.npy", np.array([5, 6, 2, 1, 7]))
    for start, expected in (([1], [[1, 5, 6, 2], [1, 7]]), (None, [[5, 6, 2], [1, 7]])):
        documents = token_documents(tmp_path / "x.npy", separator=2, start_ids=start)
        assert read_documents(documents) == expected


def test_text_that_spells_a_special_token_is_text(tmp_path, caplog):
    tokenizer = open_tokenizer(TINY)
    parts = ["a", "<", "/", "s", ">", "b", "<", "/", "s", ">"]
    as_text = [tokenizer.token_to_id(part) for part in parts]
    (tmp_path / "x.txt").write_text("a</s>b</s>")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a</s>b</s>"}))
    for name in ("x.txt", "x.jsonl"):
        source = tmp_path / name
        assert read_documents(token_documents(source, tokenizer, start_ids=[])) == [as_text]
        assert "x.txt: spells special tokens (</s> 2 times), encoded as text" in caplog.text
    allowed = token_documents(source, tokenizer, start_ids=[], special_tokens="allow")
    assert read_documents(allowed) == [[as_text[0], 2, as_text[5], 2]]
    assert "(</s> 2 times), encoded as special tokens" in caplog.text
