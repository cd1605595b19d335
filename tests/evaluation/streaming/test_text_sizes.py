"""Bytes and characters of tokens: against the bytes that each token stands for."""

import numpy as np
import pytest
from support.streaming import evaluator_of
from support.toy_tokenizers import byte_level, merging_newlines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.tables import stream_tables
from needlework.evaluation.streaming.text_sizes import text_sizes
from needlework.evaluation.streaming.token_source import TokenFile, sized, write_tokens

TEXT = "Go: naïve 水の流れ — 🌊🏄‍♀️ e\u0301.\n\n  Two  spaces,\tÅ and 한국어! " * 3
ALPHABET = {
    c: b
    for b, c in zip(
        [*range(33, 127), *range(161, 173), *range(174, 256)],
        map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]),
        strict=True,
    )
}
OTHERS = [b for b in range(256) if b not in ALPHABET.values()]
ALPHABET |= {chr(256 + i): b for i, b in enumerate(OTHERS)}


def byte_fallback() -> Tokenizer:
    """As Llama 2: a space in front, unknown characters as bytes."""
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdeGospTw.,:!"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def bytes_of(tokens: list[str]) -> list[bytes]:
    """The bytes of byte-level or byte-fallback tokens."""
    if any(token.startswith("<0x") for token in tokens):
        return [
            bytes([int(t[3:5], 16)]) if t.startswith("<0x") else t.replace("▁", " ").encode()
            for t in tokens
        ]
    return [bytes(ALPHABET[c] for c in token) for token in tokens]


@pytest.mark.parametrize("make_tokenizer", [byte_level, merging_newlines, byte_fallback])
def test_sizes_are_those_of_the_bytes_of_each_token(make_tokenizer):
    tokenizer = make_tokenizer()
    encoding = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = bytes_of(encoding.tokens)
    if make_tokenizer is byte_fallback:
        assert pieces[0] == b" "
        pieces[0] = b""
    assert b"".join(pieces) == TEXT.encode()
    sizes, read = text_sizes(TEXT, encoding, tokenizer), b""
    for (size, characters), piece in zip(sizes.tolist(), pieces, strict=True):
        before = len(read.decode(errors="ignore"))
        read += piece
        assert size == len(piece)
        assert characters == len(read.decode(errors="ignore")) - before


def test_sizes_of_a_normalizing_tokenizer_are_those_of_the_text():
    tokenizer = Tokenizer(models.WordLevel({"it": 0, "rains": 1, "?": 2}, unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "  It  RAINS   e\u0301 水\n"
    sizes = text_sizes(text, tokenizer.encode(text), tokenizer)
    assert sizes.sum(0).tolist() == [len(text.encode()), len(text)]
    assert sizes[0].tolist() == [4, 4]
    assert sizes[1].tolist() == [7, 7]


def test_a_text_without_tokens_has_no_sizes():
    assert text_sizes("", byte_level().encode(""), byte_level()).shape == (0, 2)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("size", "overlap"), [(7, 0), (16, 5)])
@pytest.mark.parametrize("limit", [None, 61])
def test_chunks_have_the_sizes_of_their_scored_tokens(tmp_path, separate, size, overlap, limit):
    tokenizer = byte_level()
    texts = [TEXT[:40], "水", TEXT[40:90]]
    parts = [(text[:11], text[11:]) for text in texts]
    documents = [[t for part in both for t in tokenizer.encode(part).tokens] for both in parts]
    paths = tmp_path / "x.npy", tmp_path / "s.npy"
    pieces = [sized(both, tokenizer) for both in parts]
    starts = np.array(write_tokens(pieces, paths[0], limit, paths[1]))
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **shape, **heads)
    model = LlamaForCausalLM(config).eval()
    chunks, *_ = stream_tables(
        evaluator_of(model, size, overlap, separate_documents=separate),
        TokenFile(paths[0], starts=starts),
        system="x",
        stream="x",
        shard=0,
        checkpoint=StreamCheckpoint(tmp_path / "state", ""),
        sizes=np.load(paths[1]),
        starts=starts,
    )
    documents = [bytes_of(tokens) for tokens in documents]
    if not separate:
        documents = [[piece for document in documents for piece in document]]
    read = [piece for document in documents for piece in document][:limit]
    expected = [len(b"".join(document[1:])) for document in documents]
    if limit is None:
        assert chunks["text_bytes"].sum() == sum(expected)
    elif not separate:
        assert chunks["text_bytes"].sum() == len(b"".join(read[1:]))
    for row in chunks.iter_rows(named=True):
        first = row["first_token"]
        scored = documents[row["document"]][first : first + row["tokens"]]
        assert row["text_bytes"] == len(b"".join(scored))


def test_sizes_of_token_ids_are_unknown(tmp_path):
    ids = np.arange(5)
    assert write_tokens([[ids]], tmp_path / "x.npy", None, tmp_path / "s.npy") == [0]
    assert np.load(tmp_path / "s.npy").shape == (0, 2)
