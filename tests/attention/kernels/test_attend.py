import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.compiler import set_stance

from needlework.attention.blocks import Blocks, choose
from needlework.attention.kernels import attend as attend_module
from needlework.attention.kernels import choice, flash
from needlework.attention.kernels.attend import attend, attend_compiled, has_compiler
from needlework.attention.kernels.gather import SoftmaxTerms, gather
from needlework.attention.masks import LazyMask
from needlework.config.attention.random import Random
from needlework.config.attention.sketchwalk import SketchWalk

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
DEVICES = [device for device in ("cpu", "cuda") if device == "cpu" or torch.cuda.is_available()]
needs_compiler = pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")


def masked(lengths, total, new, right=False, device=CPU, **kwargs):
    """A LazyMask of rows with the given numbers of real tokens, padded on one side."""
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[:length] = right
        row[total - length :] |= not right
    mask = LazyMask(len(lengths), new, total, total - new, attention_mask=real.to(device), **kwargs)
    return real, mask


def stored_as(x, layout):
    """The same values in the memory layout of a cache slice or a projection."""
    if layout == "slice":
        longer = torch.cat([x, torch.full_like(x[:, :, :3], torch.nan)], 2)
        return longer[:, :, : x.shape[2]]
    return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "by token" else x


def reference(query, key, value, real, start, chosen, blocks, scaling, softcap=None, sinks=None):
    """Attention of each real token, one at a time, over the tokens of its chosen blocks.

    Also returns the number of pairs, averaged over heads.
    """
    heads = query.shape[1]
    out, pairs = torch.zeros(*query.shape[:3], value.shape[-1]), 0
    group = heads // key.shape[1]
    chosen = chosen[:, None] if chosen.ndim == 3 else chosen
    for b in range(query.shape[0]):
        first = int(real[b].int().argmax())
        for t in range(query.shape[2]):
            position = start + t
            if not real[b, position]:
                continue
            own = (position - first) // blocks.size
            for h in range(heads):
                choice = chosen[b, h // (heads // chosen.shape[1]), own - blocks.begin[b]]
                keys = [
                    p
                    for p in range(first, position + 1)
                    if real[b, p] and (p - first) // blocks.size in choice.tolist()
                ]
                pairs += len(keys)
                logits = key[b, h // group, keys] @ query[b, h, t] * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.exp()
                denominator = weights.sum() + (0 if sinks is None else sinks[h].exp())
                out[b, h, t] = weights / denominator @ value[b, h // group, keys]
    return out, pairs / heads


def scores_of(blocks, heads, choices, device=CPU):
    """Random scores, common to all heads, per kv head, or per head, as `choices` says.

    For a method that marks blocks some are certainly kept or dropped, so that rows keep different
    numbers of blocks.
    """
    shape = {"all": (), "kv": (heads[1],), "head": (heads[0],)}[choices]
    scores = torch.rand(len(blocks.begin), *shape, blocks.rows, blocks.count, device=device)
    if not blocks.system.marks_blocks:
        return scores
    return scores.masked_fill(scores < 0.4, -torch.inf).masked_fill(scores > 0.6, torch.inf)


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    size=st.integers(1, 6),
    cached=st.integers(0, 23),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1), (6, 3)]),
    choices=st.sampled_from(["all", "kv", "head"]),
    marks=st.booleans(),
    density=st.sampled_from([0.3, 1.0]),
    right=st.booleans(),
    extra=st.sampled_from(["", "softcap", "sinks"]),
    layouts=st.lists(st.sampled_from(["plain", "slice", "by token"]), min_size=2, max_size=2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    d_v=st.sampled_from([4, 8]),
    min_queries=st.sampled_from([1, flash.MIN_QUERIES]),
    elements=st.sampled_from([1, flash.GATHERED_ELEMENTS]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=300)
def test_uncompiled_attention_matches_the_reference(
    lengths,
    size,
    cached,
    heads,
    choices,
    marks,
    density,
    right,
    extra,
    layouts,
    dtype,
    d_v,
    min_queries,
    elements,
    seed,
):
    torch.manual_seed(seed)
    total = max(lengths)
    start = min(cached, total - 1)
    real, mask = masked(lengths, total, total - start, right)
    system = Random(block_size=size, density=density)
    if marks:
        system = SketchWalk(block_size=size, select="quantile")
    blocks = Blocks(mask, system, CPU)
    query = torch.randn(len(lengths), heads[0], total - start, 8).to(dtype)
    key = torch.randn(len(lengths), heads[1], total, 8).to(dtype)
    value = torch.randn(len(lengths), heads[1], total, d_v).to(dtype)
    chosen = choose(scores_of(blocks, heads, choices), blocks)
    terms = {
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": torch.randn(heads[0]) if extra == "sinks" else None,
    }
    key_and_value = [stored_as(x, layout) for x, layout in zip((key, value), layouts, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "MIN_QUERIES", min_queries)
        patch.setattr(flash, "GATHERED_ELEMENTS", elements)
        out, pairs = attend(query, *key_and_value, chosen, blocks, scaling=0.5, **terms)
    exact = (x.float() for x in (query, key, value))
    expected, count = reference(*exact, real, start, chosen, blocks, 0.5, **terms)
    is_real = real[:, None, start:, None]
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    atol = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out.float() * is_real, expected, rtol=1e-4, atol=atol)
    assert pairs == pytest.approx(count, rel=1e-12)
    if density == 1 and not marks:
        assert count == mask.causal_pairs


def test_other_masks_apply_within_the_chosen_blocks():
    torch.manual_seed(0)

    def every_third(batch, head, q, k):
        return (k <= q) & ((q - k) % 3 == 0)

    real, mask = masked([20, 13], 20, 20, mask_function=every_third)
    blocks = Blocks(mask, Random(block_size=4, density=1.0), CPU)
    query, key, value = (torch.randn(2, 2, 20, 8) for _ in range(3))
    chosen = choose(torch.rand(2, blocks.rows, blocks.count), blocks)
    out, pairs = attend(query, key, value, chosen, blocks)
    n = torch.arange(20)
    full = every_third(0, 0, n[:, None], n)[None, None] & real[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, full)
    torch.testing.assert_close(out[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1, :, 7:], expected[1, :, 7:], rtol=1e-4, atol=1e-5)
    assert pairs == (full & real[:, None, :, None]).sum()
    torch.testing.assert_close(mask.stock("sdpa"), full)


@pytest.mark.parametrize("choices", ["all", "kv", "head"])
@pytest.mark.parametrize("new", [90, 1])
def test_gathering_in_parts_does_not_change_the_result(monkeypatch, new, choices):
    torch.manual_seed(0)
    _, mask = masked([90, 50], 90, new)
    blocks = Blocks(mask, Random(block_size=4, density=0.4), CPU)
    query, key, value = torch.randn(2, 4, new, 8), *torch.randn(2, 2, 2, 90, 8)
    chosen = choose(scores_of(blocks, (4, 2), choices), blocks)
    sinks = torch.randn(4)
    whole, pairs = attend(query, key, value, chosen, blocks, sinks=sinks)
    monkeypatch.setattr("needlework.attention.kernels.gather.GATHER_ELEMENTS", {"cpu": 1})
    parts, pairs_in_parts = attend(query, key, value, chosen, blocks, sinks=sinks)
    torch.testing.assert_close(parts, whole)
    assert pairs == pairs_in_parts


def test_wrong_number_of_choices_is_an_error():
    _, mask = masked([20], 20, 20)
    blocks = Blocks(mask, Random(block_size=4), CPU)
    query, key, value = torch.randn(1, 6, 20, 8), *torch.randn(2, 1, 3, 20, 8)
    chosen = choose(torch.rand(1, 2, blocks.rows, blocks.count), blocks)
    with pytest.raises(ValueError, match=r"for 2 heads; .* 3 kv heads or 6 heads"):
        attend(query, key, value, chosen, blocks)


# d, d_v, heads, kv heads, block size, dtype, extra term, choices: each is compiled separately.
VARIANTS = {
    "d 64, groups of 2": (64, 64, 4, 2, 16, torch.float32, "", "kv"),
    "d 80, d_v 36": (80, 36, 2, 2, 32, torch.float32, "", "all"),
    "d 32, softcap": (32, 32, 2, 1, 16, torch.float32, "softcap", "all"),
    "d 48, sinks, choices of heads": (48, 48, 4, 2, 16, torch.float32, "sinks", "head"),
    "d 256, bfloat16": (256, 256, 2, 2, 48, torch.bfloat16, "", "all"),
}


def inputs_and_reference(variant, lengths, new, device="cpu", seed=0):
    """Arguments of `attend_compiled`, and the reference result."""
    d, d_v, heads, kv_heads, size, dtype, extra, choices = VARIANTS.get(variant, variant)
    torch.manual_seed(seed)
    total = max(lengths)
    start = total - new
    real, mask = masked(lengths, total, new, device=device)
    blocks = Blocks(mask, Random(block_size=size, density=0.4), torch.device(device))
    shapes = (heads, new, d), (kv_heads, total, d), (kv_heads, total, d_v)
    tensors = [torch.randn(len(lengths), *shape).to(dtype) for shape in shapes]
    chosen = choose(scores_of(blocks, (heads, kv_heads), choices, device), blocks)
    chosen = chosen[:, None] if choices == "all" else chosen
    terms = {
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": torch.randn(heads) if extra == "sinks" else None,
    }
    exact = [x.float() for x in tensors]
    expected = reference(*exact, real, start, chosen, blocks, d**-0.5, **terms)
    if terms["sinks"] is not None:
        terms["sinks"] = terms["sinks"].to(device)
    on_device = [x.to(device) for x in tensors]
    return (*on_device, chosen, blocks, SoftmaxTerms(d**-0.5, 0.0, **terms)), expected


@needs_compiler
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_attention_matches_the_reference(variant, device):
    """In one pass and in chunks that begin within a block or at its edge; with left padding, a row
    without new tokens, and a last block of one token."""
    tolerance = 1e-5 if VARIANTS[variant][5] == torch.float32 else 0.03
    for lengths, new in [([96, 75], 96), ([97, 60], 41), ([112, 3], 64), ([80, 80], 17)]:
        arguments, (expected, count) = inputs_and_reference(variant, lengths, new, device)
        with torch.inference_mode():
            out, pairs = attend_compiled(*arguments)
            gathered, _ = gather(*arguments)
        assert out.dtype == arguments[0].dtype
        blocks = arguments[4]
        real = torch.arange(new) + max(lengths) - new >= torch.tensor(blocks.mask.first)[:, None]
        real = real[:, None, :, None]
        torch.testing.assert_close(out.cpu().float() * real, expected, rtol=1e-4, atol=tolerance)
        torch.testing.assert_close(
            out.cpu() * real, gathered.cpu() * real, rtol=1e-4, atol=tolerance
        )
        assert pairs == pytest.approx(count, rel=1e-12)


@needs_compiler
def test_compiled_attention_accepts_the_layout_of_projections():
    """Batch 1, with tensors [batch, tokens, heads, d] viewed as [batch, heads, tokens, d]."""
    (*tensors, chosen, blocks, terms), (expected, _) = inputs_and_reference(
        "d 64, groups of 2", [90], 90
    )
    with torch.no_grad():
        out, _ = attend_compiled(
            *(stored_as(x, "by token") for x in tensors), chosen, blocks, terms
        )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_disabled_compiler_is_an_error():
    arguments, _ = inputs_and_reference("d 64, groups of 2", [96, 75], 96)
    with set_stance("force_eager"), pytest.raises(RuntimeError, match="all n x n scores"):
        attend_compiled(*arguments)


@needs_compiler
def test_exceeding_the_recompile_limit_is_an_error(monkeypatch):
    with torch.inference_mode():
        attend_compiled(*inputs_and_reference("d 64, groups of 2", [96, 75], 96)[0])
        monkeypatch.setattr(attend_module, "RECOMPILE_LIMIT", 1)
        attend_module._compiled.cache_clear()
        other, _ = inputs_and_reference((16, 16, 1, 1, 16, torch.float32, "", "all"), [96, 75], 96)
        with pytest.raises(FailOnRecompileLimitHit):
            attend_compiled(*other)
    attend_module._compiled.cache_clear()


def is_compiled(lengths, new, dropout=0.0, right=False, shape=(16, 2, 1, 16), softcap=None):
    """Whether `attend` selects the compiled kernel, which refuses to run uncompiled."""
    d, heads, kv_heads, size = shape
    _, mask = masked(lengths, max(lengths), new, right)
    blocks = Blocks(mask, Random(block_size=size), CPU)
    query = torch.randn(len(lengths), heads, new, d)
    key, value = torch.randn(2, len(lengths), kv_heads, max(lengths), d)
    chosen = choose(torch.rand(len(lengths), blocks.rows, blocks.count), blocks)
    with set_stance("force_eager"):
        try:
            attend(query, key, value, chosen, blocks, dropout=dropout, softcap=softcap)
        except RuntimeError as error:
            return "n x n" in str(error)
    return False


@needs_compiler
def test_only_long_causal_prefills_are_compiled(monkeypatch):
    monkeypatch.setattr(attend_module, "COMPILE_THRESHOLD", 2 * 100 * 100)
    monkeypatch.setenv(choice.VARIABLE, "compiled")
    assert is_compiled([100], 100)
    assert is_compiled([100, 60], 100)
    assert is_compiled([400], 25)
    assert not is_compiled([99], 99)
    assert not is_compiled([10_000], 1)
    assert not is_compiled([100, 60], 100, right=True)
    assert not is_compiled([100], 100, dropout=0.1)
    assert not is_compiled([100], 100, shape=(8, 2, 1, 16))
    assert not is_compiled([100], 100, shape=(16, 2, 1, 12))


def test_the_faster_kernel_is_used(monkeypatch):
    monkeypatch.setattr(attend_module, "COMPILE_THRESHOLD", 0)
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    for name in ("gather", "compiled"):
        monkeypatch.setattr(attend_module, "_FASTER", {})
        monkeypatch.setattr(attend_module, "faster", lambda *_, name=name: name)
        measured = is_compiled([100], 100, softcap=2.0)
        assert measured == (has_compiler("cpu") and name == "compiled")
        assert not is_compiled([100], 100)  # the flash kernel


def test_gathering_has_gradients(monkeypatch):
    monkeypatch.setattr(attend_module, "COMPILE_THRESHOLD", 0)
    _, mask = masked([64], 64, 64)
    blocks = Blocks(mask, Random(block_size=16, density=1.0), CPU)
    query, key, value = (torch.randn(1, 2, 64, 16, requires_grad=True) for _ in range(3))
    chosen = choose(torch.rand(1, 4, 4), blocks)
    attend(query, key, value, chosen, blocks)[0].sum().backward()
    gradients = [x.grad.clone() for x in (query, key, value)]
    for x in (query, key, value):
        x.grad = None
    torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True
    ).sum().backward()
    for gradient, x in zip(gradients, (query, key, value), strict=True):
        torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)


def test_long_prefills_are_gathered_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv(choice.VARIABLE, "compiled")
    monkeypatch.setattr(attend_module, "COMPILE_THRESHOLD", 0)
    has_compiler.cache_clear()
    try:
        assert not is_compiled([100], 100)
    finally:
        has_compiler.cache_clear()
