import math

import pytest

from needlework.config.attention.infini import Infini
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.window import Window


def test_density_keeps_that_share_of_causal_blocks():
    system = SketchWalk(density=0.25)
    assert sum(system.kept_blocks(i) for i in range(400)) == sum(
        math.ceil((i + 1) / 4) for i in range(400)
    )


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
