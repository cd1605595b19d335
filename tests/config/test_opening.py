"""The object that a model is opened by."""

from pathlib import Path

from needlework.config.opening import ModelSpec, Opening

SPEC = ModelSpec(
    path=Path("some/folder"),
    revision="v1",
    dtype="bfloat16",
    allow_pickle=True,
    opening=Opening(dp=3, tp=2, cache="quantized", max_memory={0: "2GiB"}),
)


def test_a_spec_survives_a_rule_except_for_dp():
    dump = SPEC.dump()
    assert "dp" not in dump["opening"]
    opening = SPEC.opening.model_copy(update={"dp": 1})
    assert ModelSpec.model_validate(dump) == SPEC.model_copy(update={"opening": opening})


def test_training_opens_the_same_weights_plainly():
    trained = SPEC.for_training("float32")
    assert (trained.path, trained.revision, trained.allow_pickle) == ("some/folder", "v1", True)
    assert (trained.dtype, trained.opening) == ("float32", Opening())
    assert SPEC.for_training().dtype == "bfloat16"
