import math

import pytest

from needlework.config.attention import Infini, Random, Seer, SketchWalk, Window


def test_sketchwalk_presets_set_defaults():
    paper, official, box = SketchWalk(), SketchWalk(preset="official"), SketchWalk(preset="box")
    assert box == SketchWalk(heads="sum", keys="box", walk="off", sketch_dim=None).model_copy(
        update={"preset": "box"}
    )
    assert (paper.heads, paper.walk, paper.select, paper.decode_queries) == (
        "mean",
        "product",
        "topk",
        1,
    )
    assert (official.heads, official.walk, official.select, official.decode_queries) == (
        "sum",
        "damped",
        "quantile",
        32,
    )
    assert SketchWalk(preset="official", walk="product").walk == "product"
    # YAML reads `walk: off` as false.
    assert SketchWalk(walk=False).walk == "off"
    assert SketchWalk(preset="official", sketch_dim=64).sketch_dim == 64
    changed = SketchWalk(preset="official", walk="product", sketch_dim=64)
    for system in (paper, official, box, changed):
        assert SketchWalk.model_validate(system.model_dump(mode="json")) == system
        plain = system.model_dump() | {"preset": "paper"}
        assert SketchWalk(**plain) == system.model_copy(update={"preset": "paper"})
    with pytest.raises(ValueError, match="density: select quantile does not count"):
        SketchWalk(preset="official", density=0.2)


def test_density_keeps_that_share_of_causal_blocks():
    system = SketchWalk(density=0.25)
    assert sum(system.kept_blocks(i) for i in range(400)) == sum(
        math.ceil((i + 1) / 4) for i in range(400)
    )


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


def test_window_has_no_block_count():
    with pytest.raises(ValueError, match="top_k_blocks"):
        Window(top_k_blocks=4)


def test_infini_preset_paper_sets_the_published_gate():
    default, paper = Infini(), Infini(preset="paper")
    assert (default.balance_act_type, default.gate_empty_memory) == ("hard_sigmoid", False)
    assert (paper.balance_act_type, paper.gate_empty_memory) == ("sigmoid", True)
    assert (default.segment_length, paper.segment_length) == (1024, 2048)
    assert Infini(preset="paper", balance_act_type="tanh").balance_act_type == "tanh"
    assert Infini(**paper.model_dump()) == paper


def test_sinks_outside_of_the_quantile_are_among_the_kept_ones():
    with pytest.raises(ValueError, match=r"unranked_sink_share: 0\.1 is above sink_share 0\.05"):
        SketchWalk(preset="official", unranked_sink_share=0.1)
    with pytest.raises(ValueError, match="only select quantile"):
        SketchWalk(unranked_sink_share=0.1)


def test_a_choice_per_head_needs_heads_that_are_kept_apart():
    assert SketchWalk(preset="box", choices="head").choices == "head"
    for mixed in ({"heads": "mean"}, {"walk": "damped"}, {"preset": "paper"}):
        with pytest.raises(ValueError, match="choices: head needs heads sum and walk off"):
            SketchWalk(**{"preset": "box", "choices": "head", **mixed})


def test_systems_say_whether_their_perplexity_is_a_likelihood():
    assert not SketchWalk().is_causal
    assert not SketchWalk(stages="prefill").is_causal
    causal = SketchWalk(choose="causal"), SketchWalk(stages="decode"), SketchWalk(density=1)
    assert all(system.is_causal for system in (*causal, Window(), Random(), Infini()))
    assert not Infini(segment_alignment="end").is_causal
    with pytest.raises(
        ValueError, match=r"choose: causal .* dense_last_rows depends on the prompt"
    ):
        Seer(gates="mine", choose="causal")
    assert Seer(gates="mine", choose="causal", dense_last_rows=0).is_causal
