"""Attention systems on every family with a causal language model in the installed transformers.

A family works, or it is refused before any work with a reason that is listed here; a new family
must work or get an entry.
"""

import pytest
import torch
from support.every_family import UNBUILT, tiny_config, tiny_model
from support.paths import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from needlework.attention.apply import apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention.infini import Infini
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.models.convert import convert

pytestmark = pytest.mark.slow

BLOCK = 4
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(UNBUILT))


def listed(reason: str, families: str) -> dict[str, str]:
    return dict.fromkeys(families.split(), reason)


# A word of the reason why `apply` refuses a family.
REFUSED = {
    **listed(
        "in its own code",
        "big_bird bloom codegen cpmant falcon gpt_neo gpt_neox_japanese gptj megatron-bert mpt "
        "mvp openai-gpt prophetnet rembert roformer rwkv trocr xglm xlm xlnet",
    ),
    # Encoders, and families whose layers are all state-space, sliding or indexed.
    **listed(
        "no layer with causal attention",
        "axk2 bert bert-generation bigbird_pegasus camembert data2vec-text deepseek_v32 "
        "deepseek_v4 electra ernie falcon_mamba glm_moe_dsa hy_v4 inkling2_text inkling_text "
        "mamba mamba2 moshi recurrent_gemma roberta roberta-prelayernorm roc_bert "
        "xlm-roberta xlm-roberta-xl xmod zamba",
    ),
    "doge": "makes a mask from the values",
    "gemma4_text": "shares keys and values",
    "hrm_text": "several times",
    "minimax": "cache of its own",
    "zamba2": "shares attention modules",
}
SUPPORTED = [family for family in FAMILIES if family not in REFUSED]
# A word of the reason why families that `apply` supports have no gates.
WITHOUT_GATES = {
    **listed(
        "adds positions to its embeddings",
        "bart biogpt blenderbot blenderbot-small ctrl gpt-sw3 gpt2 gpt_bigcode marian "
        "mbart opt pegasus plbart whisper",
    ),
    **listed(
        "cannot be undone",
        "bailing_hybrid beam deepseek_v2 gemma3n_text gemma4_unified_text llama4_text "
        "longcat_flash",
    ),
}
# A word of the reason why families that `apply` supports cannot become Infini models.
NOT_CONVERTED = {
    **listed(
        "does not use RoPE",
        "bart biogpt blenderbot blenderbot-small ctrl gpt-sw3 gpt2 gpt_bigcode marian mbart opt "
        "pegasus plbart whisper",
    ),
    **listed(
        "linear_attention layers",
        "bailing_hybrid bamba granitemoehybrid jamba kimi_linear nemotron_h olmo_hybrid "
        "qwen3_5_moe_text qwen3_5_text qwen3_next",
    ),
    **listed("conv layers", "lfm2_moe lfm3"),
    **listed("hybrid layers", "falcon_h1 zaya"),
    **listed(
        "changes its queries and keys",
        "axk1 deepseek_v3 gemma4_unified_text glm4_moe_lite longcat_flash minicpm3 youtu",
    ),
    **listed("do not pass arguments on", "nemotron stablelm"),
    "beam": "have no rotary embedding",
    "deepseek_v2": "does not return cosines",
    "diffllama": "calls attention 2 times",
    "gemma3n_text": "dummy layers",
    "laguna": "query heads",
    "llama4_text": "chunked_attention layers",
}


def prompts() -> dict[str, torch.Tensor]:
    """Two rows of 40 tokens, the second padded on the left."""
    ids = torch.randint(3, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    """Logits of the prompts' real tokens."""
    inputs = prompts()
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.isfinite().all()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_works_or_is_refused_with_a_reason(family):
    model = tiny_model(family)
    if family in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[family]):
            apply(model, Random(block_size=BLOCK, dense_layers=0))
        return
    expected = logits_of(model)
    stock_tokens = model.generate(**prompts(), max_new_tokens=3, do_sample=False)
    with apply(model, Random(block_size=BLOCK, density=1.0, dense_layers=0)) as handle:
        assert handle.sparse_layers
        assert_equal(logits_of(model), expected)
        tokens = model.generate(**prompts(), max_new_tokens=3, do_sample=False)
        assert tokens.tolist() == stock_tokens.tolist()
        assert handle.density().decode == 1
    with apply(model, Random(block_size=BLOCK, top_k_blocks=1, dense_layers=0)) as handle:
        changed = (logits_of(model) - expected).abs().max()
        assert changed > 1e-4 * expected.abs().max()
        assert handle.density().prefill < 0.3


@pytest.mark.parametrize("family", SUPPORTED)
def test_gates_work_or_are_refused_with_a_reason(family, tmp_path):
    model = tiny_model(family)
    if family in WITHOUT_GATES:
        with pytest.raises(ValueError, match=WITHOUT_GATES[family]):
            Gates.new(model, block_size=BLOCK)
        return
    expected = logits_of(model)
    Gates.new(model, block_size=BLOCK).save(tmp_path)
    with apply(model, Seer(block_size=BLOCK, density=1.0, gates=str(tmp_path))):
        assert_equal(logits_of(model), expected)
        model.generate(**prompts(), max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_conversion_to_infini_works_or_is_refused_with_a_reason(family):
    model = tiny_model(family)
    if family in NOT_CONVERTED:
        with pytest.raises(ValueError, match=NOT_CONVERTED[family]):
            convert(model, Infini(segment_length=64))
        return
    assert_equal(logits_of(convert(model, Infini(segment_length=64))), logits_of(model))


@pytest.mark.parametrize("family", REFUSED)
def test_a_conversion_of_a_family_that_apply_refuses_is_refused_or_right(family):
    model, refusal = tiny_model(family), None
    try:
        converted = convert(model, Infini(segment_length=64))
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert_equal(logits_of(converted), logits_of(model))
    else:
        assert refusal.startswith("infini: ")


@pytest.mark.parametrize("family", UNBUILT)
def test_a_family_without_a_tiny_model_is_listed_for_a_reason(family):
    """Multimodal wrappers are tested by their text models."""
    reason, text_family = UNBUILT[family]
    if text_family is not None:
        assert text_family in FAMILIES
        return
    with pytest.raises(Exception, match=reason):
        tiny_model(family)(**prompts())


def test_documentation_lists_every_family():
    page = (ROOT / "docs/families.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    for family in FAMILIES:
        if family in REFUSED:
            assert f"`{family}`" in rows[f"no: {REFUSED[family]}"]
            continue
        gates, infini = family not in WITHOUT_GATES, family not in NOT_CONVERTED
        kind = {(True, True): "all", (True, False): "all but `infini`"}
        kind |= {(False, True): "all but `seer`", (False, False): "all but `seer`, `infini`"}
        assert f"`{family}`" in rows[kind[gates, infini]]


def test_layers_that_slide_are_not_replaced():
    """EXAONE 4 sets a window on every module, but only some layers use it."""
    config = tiny_config("exaone4")
    full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    with apply(tiny_model("exaone4"), Random(block_size=BLOCK, dense_layers=0)) as handle:
        assert sorted(handle.sparse_layers) == full
