"""The arithmetic against trying every number of units."""

from random import Random

import pytest

from needlework.config.tasks import NiahMultikey1, NiahSingle1, Passkey
from needlework.tasks import niah, passkey
from needlework.tasks.fill import TooLong, fill, least_tokens


@pytest.mark.parametrize(
    ("module", "task"),
    [(passkey, Passkey()), (niah, NiahSingle1()), (niah, NiahMultikey1())],
    ids=["passkey", "noise", "sentences"],
)
@pytest.mark.parametrize("depth_percent", [0.0, 35.0, 100.0])
def test_no_number_of_units_fits_better(byte_tokenizer, module, task, depth_percent):
    def draft():
        return module.drafts(task, byte_tokenizer)(Random(5), depth_percent)

    reference = draft()
    counts = [
        len(byte_tokenizer.encode(reference.build(units).text))
        for units in range(reference.least, reference.least + 240)
    ]
    for budget in range(260, 300, 3):
        best = max(tokens for tokens in counts if tokens <= budget)
        prompt, encoding = fill(draft(), byte_tokenizer, budget)
        assert len(encoding) == best
        assert encoding.ids == byte_tokenizer.encode(prompt.text).ids


def test_least_prompt_is_the_limit(byte_tokenizer):
    draft = passkey.drafts(Passkey(), byte_tokenizer)(Random(5), 50.0)
    least = least_tokens(draft, byte_tokenizer, " 12")
    prompt, _ = fill(draft, byte_tokenizer, least, " 12")
    assert prompt == draft.build(draft.least)
    with pytest.raises(TooLong):
        fill(draft, byte_tokenizer, least - 1, " 12")
