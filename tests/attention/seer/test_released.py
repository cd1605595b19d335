"""Gates of the released code: they score blocks as its formulae do, written here as sums."""

import math

import pytest
import torch
from support.released_gates import (
    DECODE,
    PREFILL,
    released_config,
    released_weights,
    write_released,
)
from support.rope_reference import rotate_vector
from support.seer_reference import SIZE, GateSpy
from support.tiny_models import generate, prompts, tiny

from needlework import Seer, apply
from needlework.attention.seer.released import open_gates

LAYERS, HEADS, KV, D = 2, 4, 2, 8
POOLS = {
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "avg": lambda x: x.mean(0),
}


def model():
    return tiny("qwen3", {"num_hidden_layers": LAYERS, "num_key_value_heads": KV})


def config(**changes):
    gate_dim = changes.pop("seerattn_gate_hidden_size", 6)
    return released_config(model().config, SIZE, gate_dim, changes)


def rms(x, weight):
    return x / math.sqrt(float((x**2).mean()) + 1e-6) * weight


def rotated(x, position):
    return torch.from_numpy(rotate_vector(x.numpy(), position))


def reference(stated, tensors, layer, query, key, row, is_decode):
    """Logits of one row [heads or kv heads][blocks], float64, from queries [HEADS, n, D] and keys
    [KV, n, D] before RoPE; in decode, of the blocks before that of the last token."""
    at = f"model.layers.{layer}.self_attn.attn_gate."
    own = {k.removeprefix(at).removesuffix(".weight"): x.double() for k, x in tensors.items()}
    g, n = stated["seerattn_gate_hidden_size"], query.shape[1]
    pooling = stated.get("seerattn_k_seq_pooling_type") or stated["seerattn_gate_type"][5:]
    names = [name for name in POOLS if name in pooling]
    group, logits = HEADS // KV, []
    for head in range(KV if is_decode else HEADS):
        kv = head if is_decode else head // group
        if is_decode:
            of_group, position = query[kv * group : (kv + 1) * group, -1], n - 1
            form = stated["seerattn_q_head_pooling_type"]
            if form == "Qproj":
                q = torch.einsum("gd,gdo->o", of_group, own["attngate_linear_q"][kv])
            else:
                q = of_group.mean(0)
                q = q if form == "Qavg" else q @ own["attngate_linear_q"][kv]
            if "attngate_qnorm" in own:
                q = rms(q, own["attngate_qnorm"])
        else:
            q, position = query[head, row * SIZE : (row + 1) * SIZE].mean(0), row * SIZE
            if "mask_linear_q" in own:
                q = q @ own["mask_linear_q"][head]
        scores = []
        for block in range(row if is_decode else row + 1):
            keys = key[kv, block * SIZE : (block + 1) * SIZE]
            pools = torch.cat([POOLS[name](keys) for name in names])
            if is_decode:
                k = pools @ own["attngate_linear_k"][kv]
                k = rms(k, own["attngate_knorm"]) if "attngate_knorm" in own else k
            else:
                k = pools @ own["mask_linear_k"][head if g == D else kv]
            dot = rotated(q, position) @ rotated(k, block * SIZE)
            scores.append(float(dot) / math.sqrt(g))
        logits.append(scores)
    return logits


FORMS = {
    "decode": DECODE,
    "decode, as wide as a head": {**DECODE, "seerattn_gate_hidden_size": D},
    "decode, Qavgproj": {**DECODE, "seerattn_q_head_pooling_type": "Qavgproj"},
    "decode, Qavg": {
        **DECODE, "seerattn_q_head_pooling_type": "Qavg", "seerattn_gate_hidden_size": D,
    },
    "decode, two pools": {**DECODE, "seerattn_k_seq_pooling_type": "Kmaxavg"},
    "prefill": PREFILL,
    "prefill, as wide as a head": {**PREFILL, "seerattn_gate_hidden_size": D},
    "prefill, one pool": {"seerattn_gate_type": "Qavg_Kmin"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norms", "file"),
    [
        *((name, True, "attn_gate_weights.pth") for name in FORMS),
        *((name, False, "model.safetensors") for name in ("decode", "decode, Qavg")),
    ],
)
def test_released_gates_score_as_the_released_code(tmp_path, name, norms, file):
    form = FORMS[name]
    is_decode = "seerattn_gate_type" not in form
    stated, lm = config(**form), model()
    tensors = released_weights(stated, D, norms)
    others = {"model.embed_tokens.weight": torch.ones(2)}
    folder = write_released(tmp_path / "gates", stated, {**tensors, **others}, file)
    stages = "decode" if is_decode else "prefill"
    system = Seer(gates=folder, block_size=SIZE, top_k_blocks=2, stages=stages, dense_last_rows=0)
    scored = []
    with apply(lm, system) as handle:
        spy = GateSpy(handle)
        compute = handle.selector._gate(stages, 0).__class__.logits

        def logits(gate, *args):
            scored.append(compute(gate, *args))
            return scored[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(handle.selector._gate(stages, 0)), "logits", logits)
            generate(lm, prompts([14]), 4)
        spy.remove()
        steps = [scored[i : i + LAYERS] for i in range(0, len(scored), LAYERS)]
        for step, of_layers in enumerate(steps):
            n = 14 + step + 1 if is_decode else 14
            for layer, got in enumerate(of_layers):
                query, key = (
                    torch.from_numpy(spy.of(layer, name, 0, 0))[:, :n] for name in ("q", "k")
                )
                for row in [(n - 1) // SIZE] if is_decode else range(got.shape[2]):
                    expected = reference(stated, tensors, layer, query, key, row, is_decode)
                    found = got[0, :, 0 if is_decode else row, : len(expected[0])].double()
                    torch.testing.assert_close(
                        found, torch.tensor(expected).double(), rtol=1e-4, atol=1e-4
                    )
    assert len(steps) == (3 if is_decode else 1)


def refusal(folder, lm=None):
    with pytest.raises(ValueError, match=r"^gates: ") as error:
        open_gates(folder, lm or model())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"seerattn_q_head_pooling_type": "Qorig"},
            "has a config.json whose seerattn_q_head_pooling_type is 'Qorig'; use gates where it "
            "is one of Qproj, Qavgproj, Qavg",
        ),
        ({"seerattn_k_seq_pooling_type": "Kminmax"}, "seerattn_k_seq_pooling_type is 'Kminmax'"),
        ({"seerattn_gate_type": "Qmax_Kmax"}, "seerattn_gate_type is 'Qmax_Kmax'; use gates"),
        ({"seerattn_use_rope": False}, "seerattn_use_rope is False; use gates where it is true"),
        ({"seerattn_gate_force_double": True}, "seerattn_gate_force_double is True"),
        ({"seerattn_gate_block_size": "64"}, "seerattn_gate_block_size is '64'"),
        ({"num_hidden_layers": 36}, "num_hidden_layers is 36, but this model has 2"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2', but this model has 'qwen3'"),
        (
            {"seerattn_q_head_pooling_type": "Qavg"},
            "seerattn_q_head_pooling_type Qavg needs gates as wide as a head, not 6",
        ),
    ],
)
def test_unsupported_released_gates_are_refused_in_one_line(tmp_path, changes, problem):
    folder = write_released(
        tmp_path / "gates", config(**{**DECODE, **changes}), released_weights(config(**DECODE), D)
    )
    assert problem in refusal(folder)


def test_missing_and_broken_released_weights_are_named(tmp_path):
    stated = config(**DECODE)
    tensors, folder = released_weights(stated, D), tmp_path / "gates"
    name = "model.layers.1.self_attn.attn_gate.attngate_linear_k.weight"
    write_released(folder, stated, {k: x for k, x in tensors.items() if k != name})
    assert "attn_gate_weights.pth: layer 1 has no attngate_linear_k" in refusal(folder)
    write_released(folder, stated, tensors | {name: tensors[name][..., :2].clone()})
    assert "attngate_linear_k of layer 1 has shape [2, 24, 2], not [2, 24, 6]" in refusal(folder)
    for content in (b"", b"no pickle", (folder / "attn_gate_weights.pth").read_bytes()[:90]):
        (folder / "attn_gate_weights.pth").write_bytes(content)
        assert f"gates: {folder}/attn_gate_weights.pth: " in refusal(folder)
    (folder / "attn_gate_weights.pth").unlink()
    assert "has a config.json of gates, but none of attn_gate_weights.safetensors" in refusal(
        folder
    )


def test_narrow_gates_of_a_model_with_scaled_frequencies_are_refused(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    scaled = tiny("qwen3", {"num_hidden_layers": LAYERS, "rope_parameters": rope})
    stated = config(**DECODE)
    folder = write_released(tmp_path / "gates", stated, released_weights(stated, D))
    assert "rope_type linear scales frequencies" in refusal(folder, scaled)
