from support.paths import ROOT

from needlework.config.attention.base import Attention
from needlework.config.attention.registry import SYSTEMS, attention_class


def test_every_method_has_parameters_and_is_found_by_its_type():
    methods = (ROOT / "needlework/attention/methods").glob("[!_]*.py")
    assert {path.stem for path in methods} == set(SYSTEMS)
    assert all(attention_class(name).model_fields["type"].default == name for name in SYSTEMS)
    assert list(SYSTEMS) == sorted(SYSTEMS)


def test_an_unknown_type_has_no_parameters():
    assert attention_class("unknown") is Attention
