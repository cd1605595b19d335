from needlework.config.attention.infini import Infini


def test_infini_preset_paper_sets_the_published_gate():
    default, paper = Infini(), Infini(preset="paper")
    assert (default.balance_act_type, default.gate_empty_memory) == ("hard_sigmoid", False)
    assert (paper.balance_act_type, paper.gate_empty_memory) == ("sigmoid", True)
    assert (default.segment_length, paper.segment_length) == (1024, 2048)
    assert Infini(preset="paper", balance_act_type="tanh").balance_act_type == "tanh"
    assert Infini(**paper.model_dump()) == paper
