import json
from itertools import combinations

import pytest

from needlework.config.saved_gates import POOLS, SavedGates, saved_gates

RELEASED = {
    "seerattn_gate_block_size": 64,
    "seerattn_gate_hidden_size": 128,
    "seerattn_k_seq_pooling_type": "Kmaxminavg",
    "seerattn_q_head_pooling_type": "Qproj",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    (tmp_path / "attn_gate_weights.pth").touch()
    return tmp_path


def test_every_combination_of_pools_is_read(folder):
    for n in (1, 2, 3):
        for pools in combinations(POOLS, n):
            name = f"K{''.join(pools)}"
            for key, stage in (
                ({"seerattn_k_seq_pooling_type": name}, "decode"),
                ({"seerattn_gate_type": f"Qavg_{name}"}, "prefill"),
            ):
                (folder / "config.json").write_text(json.dumps(RELEASED | key))
                expected = SavedGates(
                    "attn_gate_weights.pth", "config.json", 64, 128, (stage,), pools
                )
                assert saved_gates(folder) == expected


@pytest.mark.parametrize("name", ["K", "Kavgmax", "Kmaxmax", "maxmin", "Ksum", None, 3])
def test_other_pools_are_refused(folder, name):
    changed = RELEASED | {"seerattn_k_seq_pooling_type": name}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=f"whose seerattn_k_seq_pooling_type is {name!r}; use"):
        saved_gates(folder)


def test_safetensors_are_preferred_and_saved_gates_before_released_ones(folder):
    (folder / "model.safetensors").touch()
    assert saved_gates(folder).weights == "model.safetensors"
    own = {"block_size": 4, "gate_dim": 8, "stages": ["prefill", "decode"]}
    (folder / "gates.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"has no gates\.safetensors"):
        saved_gates(folder)
    (folder / "gates.safetensors").touch()
    assert saved_gates(folder) == SavedGates(
        "gates.safetensors", "gates.json", 4, 8, ("prefill", "decode")
    )


def test_the_config_of_a_model_is_not_one_of_gates(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"has no gates\.json; write the path of a folder"):
        saved_gates(tmp_path)
