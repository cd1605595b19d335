import pytest

from needlework.config.attention.sketchwalk import SketchWalk


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
