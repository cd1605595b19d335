import pytest
from support.experiment_file import EXPERIMENT, case, check_error, error_of, read


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "own, b",
            "ow, b",
            "systems.seer.attention.gates = 'ow': unknown gates; did you mean `own`?",
        ),
        case(
            "gates: saved",
            "gates: ./nowhere",
            "systems.given.attention.gates = './nowhere': unknown gates; write one of own, or a",
        ),
        case(
            "gates: saved",
            "gates: checkpoint",
            "systems.given.attention.gates = 'checkpoint': has no gates.json; write the path of a",
        ),
        case(
            "gates: saved",
            "gates: cut",
            "systems.given.attention.gates = 'cut': has a gates.json that is not a JSON object;",
        ),
        case(
            "gates: saved",
            "gates: list",
            "systems.given.attention.gates = 'list': has a gates.json that is not a JSON object;",
        ),
        case(
            "gates: saved",
            "gates: none",
            "systems.given.attention.gates = 'none': has a gates.json without block_size, gate_dim",
        ),
        case(
            "gates: saved",
            "gates: text",
            "systems.given.attention.gates = 'text': has a gates.json without block_size, gate_dim",
        ),
        case(
            "gates: saved",
            "gates: bool",
            "systems.given.attention.gates = 'bool': has a gates.json without block_size, gate_dim",
        ),
        case(
            "gates: saved",
            "gates: stageless",
            "systems.given.attention.gates = 'stageless': has a gates.json without block_size,",
        ),
        case(
            "gates: saved",
            "gates: half",
            "systems.given.attention.gates = 'half': has no gates for decode; set stages: prefill",
        ),
        case(
            "gates: saved",
            "gates: released",
            "systems.given.attention.gates = 'released': has no gates for prefill; set stages: "
            "decode",
        ),
        case(
            "gates: saved",
            "gates: foreign",
            "systems.given.attention.gates = 'foreign': has a config.json whose "
            "seerattn_q_head_pooling_type is 'Qorig'; use gates where it is one of Qproj",
        ),
        case(
            "base, block_size: 32",
            "base, stages: [decode], block_size: 32",
            "systems.seer.attention.gates = 'own': has no gates for prefill; set stages: decode",
            at="seer: {model: base, atte",
        ),
        case(
            "base, block_size: 32",
            "base, stages: [prefill, decode, decode], block_size: 32",
            "gates.own.stages.2 = 'decode': is a duplicate; remove it",
        ),
        case(
            "seer: {model: base",
            "seer: {model: long",
            "systems.seer.attention.gates = 'own': are gates of model `base`; use gates of `long`",
        ),
        case(
            "own, block_size: 32",
            "own, block_size: 16",
            "systems.seer.attention.block_size = 16: differs from the gates' block size; write 32",
        ),
        case(
            "saved, block_size: 64",
            "saved, block_size: 32",
            "systems.given.attention.block_size = 32: differs from the gates' block size; write 64",
        ),
        case(
            "own: {model: base",
            "own: {model: bsae",
            "gates.own.model = 'bsae': unknown model; did you mean",
        ),
    ],
)
def test_missing_or_unfit_gates_are_rejected(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.usefixtures("experiment_folder")
def test_released_gates_are_accepted():
    released = "gates: released, stages: decode, block_size: 64"
    read(EXPERIMENT.replace("gates: saved, block_size: 64", released))


@pytest.mark.usefixtures("experiment_folder")
def test_gates_in_a_pickle_need_permission():
    pickled = "gates: pickled, stages: decode, block_size: 64"
    text = EXPERIMENT.replace("gates: saved, block_size: 64", pickled)
    message = "'pickled': has its weights in a pickle, attn_gate_weights.pth; write allow_pickle"
    assert message in error_of(text)
    read(text.replace("base: {path: checkpoint}", "base: {path: checkpoint, allow_pickle: true}"))
