"""Each attention method keeps what the rest of needlework relies on. Generated from the types that
an experiment can name, so a new method is tested here without an entry."""

import json
from importlib import import_module
from itertools import pairwise
from typing import Literal, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter
from support.paths import ROOT
from support.tiny_models import prompts, run, tiny
from transformers import DynamicCache, StaticCache

from needlework.attention.apply import apply
from needlework.attention.base import AttentionMethod, computation_of
from needlework.attention.cache_state import MethodState
from needlework.attention.layers import LayerShape
from needlework.attention.seer.gates import Gates
from needlework.config.attention.base import BlockSparse, Ranked
from needlework.config.attention.registry import AnyAttention
from needlework.config.reference import reference
from needlework.config.schema import experiment_schema
from needlework.evaluation.meter import cache_bytes
from needlework.models.convert import convert

pytestmark = pytest.mark.slow

CLASSES = get_args(get_args(AnyAttention)[0])
TYPES = {cls.model_fields["type"].default: cls for cls in CLASSES}
BLOCK_SPARSE = [name for name, cls in TYPES.items() if issubclass(cls, BlockSparse)]
CONVERSIONS = [name for name, cls in TYPES.items() if cls.converts_model]
ADJUSTMENTS = [name for name, cls in TYPES.items() if cls.adjusts is not None]
# Values for keys of these names that fit a prompt of 70 tokens.
SMALL_VALUES = {
    "block_size": 4,
    "dense_layers": 1,
    "top_k_blocks": 3,
    "stride": 2,
    "recent_tokens": 16,
    "segment_length": 16,
}
TOKENS = 70
every_type = pytest.mark.parametrize("name", TYPES)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def gates(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    Gates.new(model, block_size=SMALL_VALUES["block_size"]).save(folder)
    return str(folder)


@pytest.fixture
def system_of(gates):
    def build(name):
        fields = TYPES[name].model_fields
        values = {key: value for key, value in SMALL_VALUES.items() if key in fields}
        for key, field in fields.items():
            if key == "gates":
                values[key] = gates
            elif field.is_required() and get_origin(field.annotation) is Literal:
                values[key] = get_args(field.annotation)[-1]
            elif field.is_required():
                values[key] = field.examples[0]
        return TYPES[name](**values)

    return build


def logits_of(model):
    with torch.inference_mode():
        return model(**prompts([TOKENS])).logits


def fill_cache(model):
    """The cache after a prompt of TOKENS tokens and one decoded token."""
    generated = model.generate(
        **prompts([TOKENS]),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
    )
    return generated.past_key_values


def layers_of(model):
    config = model.config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    layer = LayerShape("full_attention", None, heads, kv_heads, dim, dim, True, 4)
    return [layer] * config.num_hidden_layers


def planned_state_bytes(model, method):
    layers = layers_of(model)
    replaced = [layer for index, layer in enumerate(layers) if method.replaces(index, layer)]
    return sum(method.state_bytes(layer, TOKENS + 1) for layer in replaced)


@every_type
def test_parameters_survive_a_round_trip_and_defaults_are_valid(name, system_of):
    system = system_of(name)
    written = json.loads(system.model_dump_json())
    assert TypeAdapter(AnyAttention).validate_python(written) == system
    assert issubclass(import_module(system.module).Method, AttentionMethod)
    assert isinstance(system.is_causal, bool)  # raises unless the type answers


@every_type
def test_docs_reference_and_schema_have_an_entry(name):
    assert f"| `{name}` |" in (ROOT / "docs/systems.md").read_text()
    assert f"`type: {name}`" in reference()
    assert f'"{name}": "#/$defs/{TYPES[name].__name__}"' in json.dumps(experiment_schema())


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_density_counts_the_kept_pairs_and_stays_within_the_plan(
    name, system_of, model, monkeypatch
):
    system = system_of(name)
    method, choices, counts = computation_of(system), [], {"prefill": [], "decode": []}
    choose = import_module("needlework.attention.apply").choose

    def record_choice(scores, blocks):
        choices.append((choose(scores, blocks), blocks))
        return choices[-1][0]

    def count_layer(layer, stage, kept, causal):
        pairs = count_pairs(*choices.pop()) if choices else causal
        counts[stage].append((pairs, causal))

    monkeypatch.setattr("needlework.attention.apply.choose", record_choice)
    with apply(model, system) as handle:
        add = handle.meter.add
        monkeypatch.setattr(handle.meter, "add", lambda *args: (count_layer(*args), add(*args)))
        fill_cache(model)
        measured = handle.density()
    for stage, planned in (
        ("prefill", method.prefill_density(TOKENS)),
        ("decode", method.decode_density(TOKENS + 1)),
    ):
        kept, causal = (sum(column) for column in zip(*counts[stage], strict=True))
        assert getattr(measured, f"sparse_layers_{stage}") == pytest.approx(kept / causal)
        # Plans count whole blocks, of which a row's own is half empty.
        whole_blocks = 1 / method.count_blocks(TOKENS)
        assert kept / causal <= planned + whole_blocks
        if planned < 1:
            assert kept / causal >= planned - whole_blocks


def count_pairs(chosen, blocks):
    """Pairs of real tokens that the chosen blocks leave, one query and key at a time."""
    chosen = chosen[:, None] if chosen.ndim == 3 else chosen
    pairs = 0
    for choice in chosen[0]:
        for query in range(blocks.mask.start, blocks.mask.total):
            row = query // blocks.size - blocks.begin[0]
            kept = [block for block in choice[row].tolist() if block >= 0]
            keys = [
                key
                for block in kept
                for key in range(block * blocks.size, min((block + 1) * blocks.size, query + 1))
            ]
            if blocks.mask.window is not None:
                sinks, recent = blocks.mask.window
                keys = [key for key in keys if key < sinks or key > query - recent]
            pairs += len(keys)
    return pairs / chosen.shape[1]


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_state_has_the_planned_size_and_removal_restores_the_model(name, system_of, model):
    stock, system = logits_of(model), system_of(name)
    with apply(model, system):
        cache = fill_cache(model)
        assert (logits_of(model) - stock).abs().max() > 1e-3
    measured = sum(layer.nbytes for layer in cache.layers if isinstance(layer, MethodState))
    assert planned_state_bytes(model, computation_of(system)) == measured
    assert torch.equal(logits_of(model), stock)
    assert not model.model._forward_pre_hooks


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_a_static_cache_gives_the_same_answers(name, system_of, model):
    """Its tensors have space for tokens to come. In chunks and decode, with a padded row."""
    torch.manual_seed(0)
    ids, real = torch.randint(3, 40, (2, TOKENS)), torch.ones(2, TOKENS).long()
    real[0, :7] = 0
    logits, ends = [], [0, 32, TOKENS - 3, TOKENS - 2, TOKENS - 1, TOKENS]
    with torch.inference_mode(), apply(model, system_of(name)):
        for cache in (DynamicCache(), StaticCache(model.config, max_cache_len=TOKENS + 9)):
            parts = [
                model(ids[:, start:end], attention_mask=real[:, :end], past_key_values=cache).logits
                for start, end in pairwise(ends)
            ]
            logits.append(torch.cat(parts, 1) * real[..., None])
        answers = [
            model.generate(
                ids,
                attention_mask=real,
                max_new_tokens=5,
                do_sample=False,
                cache_implementation=kind,
            )
            for kind in (None, "static")
        ]
    torch.testing.assert_close(*logits)
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_a_dense_stage_is_stock_and_leaves_the_other_as_it_is(name, system_of, model):
    """With the last layer alone sparse, what it attends to affects no query or key, so a stage
    chooses alike whether the one before it was sparse or dense."""
    ids, forwards, logits, density = prompts([TOKENS])["input_ids"], [64, *[1] * 6], {}, {}
    stock = run(model, ids, forwards)
    both = system_of(name).model_dump() | {"dense_layers": model.config.num_hidden_layers - 1}
    for stages in ("both", "prefill", "decode"):
        system = TYPES[name](**both | {"stages": stages})
        with apply(model, system) as handle:
            logits[stages], measured = run(model, ids, forwards), handle.density()
        density[stages] = measured.prefill, measured.decode
        method = computation_of(system)
        planned = method.prefill_density(TOKENS), method.decode_density(TOKENS)
        assert [p == 1 for p in planned] == [stages == "decode", stages == "prefill"]
    assert max(density["both"]) < 1
    assert density["prefill"] == (density["both"][0], 1)
    assert density["decode"] == (1, density["both"][1])
    assert torch.equal(logits["prefill"][:, :64], logits["both"][:, :64])
    assert torch.equal(logits["prefill"][:, 64:], stock[:, 64:])
    assert torch.equal(logits["decode"][:, :64], stock[:, :64])
    torch.testing.assert_close(logits["decode"][:, 64:], logits["both"][:, 64:], rtol=0, atol=1e-6)


RANKED = [name for name in BLOCK_SPARSE if issubclass(TYPES[name], Ranked)]


def causal(system, choose="causal"):
    """The system with `choose`, without settings that depend on the prompt's length."""
    values = system.model_dump() | {"choose": choose}
    values |= {"dense_last_rows": 0} if "dense_last_rows" in values else {}
    return type(system)(**values)


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_later_tokens_affect_logits_as_the_system_says(name, system_of, model):
    """Beyond rounding: the numbers of a product depend on its shape, and so on later choices."""
    ids, cuts = prompts([TOKENS])["input_ids"], (33, 49, 53, 62)
    systems = [system_of(name)]
    if name in RANKED:
        systems = [causal(systems[0]), causal(systems[0], "block")]
        assert systems[0].is_causal
    for system in systems:
        moved = []
        with apply(model, system), torch.inference_mode():
            logits = model(ids).logits
            for cut in cuts:
                other = ids.clone()
                other[:, cut:] = prompts([TOKENS], seed=cut)["input_ids"][:, cut:]
                moved.append((model(other).logits - logits)[:, :cut].abs().max().item())
        assert (max(moved) < 2e-6) == system.is_causal
        assert max(moved) < 2e-6 or max(moved) > 1e-3


@pytest.mark.parametrize("name", RANKED)
def test_causal_choice_is_that_of_the_row_before(name, system_of, model, monkeypatch):
    """Scores row by row, in one pass and in chunks, with a padded row in the batch."""
    system, inputs = causal(system_of(name)), prompts([TOKENS, TOKENS - 8])
    seen, outputs = [], []
    choose = import_module("needlework.attention.apply").choose
    module = "needlework.attention.apply."
    monkeypatch.setattr(
        f"{module}choose", lambda scores, blocks: seen.append(scores) or choose(scores, blocks)
    )
    with apply(model, system) as handle:
        score = handle.selector.scores
        given = []
        handle.selector.scores = lambda *args: given.append(score(*args)) or given[-1]
        for chunks in ([TOKENS], [32, 16, TOKENS - 48]):
            handle.prompt_tokens = TOKENS
            cache = DynamicCache(config=model.config)
            mask = inputs["attention_mask"]
            outputs.append(run(model, inputs["input_ids"], chunks, mask, cache))
    layers = model.config.num_hidden_layers - system.dense_layers
    for own, used in zip(given[:layers], seen[:layers], strict=True):
        for row in range(1, own.shape[-2]):
            assert torch.equal(used[..., row, :], own[..., row - 1, :])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs[0][real], outputs[1][real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RANKED)
def test_causal_choice_has_the_planned_state_and_refuses_unknown_rows(name, system_of, model):
    system, ids = causal(system_of(name)), prompts([TOKENS])["input_ids"]
    with apply(model, system):
        cache = fill_cache(model)
        measured = sum(layer.nbytes for layer in cache.layers if isinstance(layer, MethodState))
        assert planned_state_bytes(model, computation_of(system)) == measured
        with torch.inference_mode():
            for token in ids[0, :5]:
                model(token.view(1, 1), past_key_values=cache)
            with pytest.raises(ValueError, match="decode or crop changed the blocks before"):
                model(ids, past_key_values=cache)


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_gradient_checkpointing_changes_no_gradient(name, system_of, model):
    inputs, found = prompts([TOKENS]), []
    with apply(model.train(), system_of(name)):
        for repeats in (False, True):
            if repeats:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.zero_grad()
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            found.append([parameter.grad.clone() for parameter in model.parameters()])
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model.eval()
    for plain, repeated in zip(*found, strict=True):
        torch.testing.assert_close(repeated, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_converted_model_has_the_planned_cache(name, system_of, model):
    stock, system = logits_of(model), system_of(name)
    converted = convert(model, system)
    measured = cache_bytes(fill_cache(converted))
    assert planned_state_bytes(model, computation_of(system)) == pytest.approx(measured, rel=0.01)
    assert torch.equal(logits_of(model), stock)
    with pytest.raises(ValueError, match=f"^{name}: is part of a model"):
        apply(model, system)


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_adjustment_needs_its_attention_and_is_undone(name, system_of, model):
    system = system_of(name)
    converted = convert(model, system_of(system.adjusts))
    stock = logits_of(converted)
    with apply(converted, system) as handle:
        assert (logits_of(converted) - stock).abs().max() > 1e-4
        assert handle.density().prefill == handle.density().decode == 1
    assert torch.equal(logits_of(converted), stock)
    with pytest.raises(ValueError, match=f"^{name}: "):
        apply(model, system)
