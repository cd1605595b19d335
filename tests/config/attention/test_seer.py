import pytest

from needlework.config.attention.seer import Seer


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"threshold": 0.1, "nz_ratio": 0.5}, "threshold: nz_ratio chooses blocks already"),
        ({"token_budget": 64, "decode_threshold": 0.1}, "token_budget chooses blocks already"),
        ({"threshold": 0.1, "stages": "decode"}, "threshold: `stages: decode` makes prefill dense"),
        (
            {"token_budget": 64, "stages": "prefill"},
            "token_budget: `stages: prefill` makes decode dense",
        ),
        ({"nz_ratio": 0.5, "token_budget": 64, "density": 0.2}, "density: both stages"),
        ({"threshold": 0.1, "stages": "prefill", "density": 0.2}, "density: both stages"),
        ({"token_budget": 63}, "63 is less than a block of 64"),
        ({"gates": ""}, "gates"),
    ],
)
def test_contradicting_seer_keys_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Seer(**{"gates": "mine", **given})


def test_seer_defaults_are_those_of_the_released_code():
    default = Seer(gates="mine")
    assert (default.threshold, default.token_budget, default.dense_last_rows) == (0.1, 2048, 2)
    assert Seer(gates="mine", threshold=0.002).token_budget == 2048
    assert Seer(gates="mine", stages="prefill").token_budget is None
    by_count = Seer(gates="mine", density=0.2)
    assert by_count.threshold is by_count.token_budget is None
    mixed = Seer(gates="mine", top_k_blocks=4, token_budget=128)
    assert (mixed.threshold, mixed.token_budget) == (None, 128)
    for system in (default, by_count, mixed):
        assert Seer.model_validate(system.model_dump(mode="json")) == system
