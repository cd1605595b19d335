"""Models behind an API in an experiment file."""

import re

import pytest
import yaml
from support.paths import ROOT

from needlework.config.model_info import max_positions
from needlework.config.models.api import Api, Price
from needlework.config.parsing.load import load_experiment

TINY = str(ROOT / "resources/needlework-tiny")
FILE = """
experiment: api
models:
  base: {path: TINY}
  gpt: {api: "https://api.openai.com/v1", model: gpt, key_env: A_KEY, tokenizer: base}
systems:
  dense: {model: base}
  gpt: {model: gpt}
tasks: {passkey: {type: passkey}}
lengths: [512]
"""


def read(text: str):
    return load_experiment(yaml.safe_load(text.replace("TINY", TINY)))


def test_an_api_shares_samples_with_the_model_of_its_tokenizer():
    experiment = read(FILE)
    api = experiment.models["gpt"]
    assert isinstance(api, Api)
    assert (api.temperature, api.endpoint, api.price, api.test_mode) == (0.0, "chat", None, False)
    assert experiment.root_model("gpt") == "base"
    assert experiment.model_of("dense").remote is None
    assert experiment.model_of("gpt").remote is api


def test_the_tokenizer_may_be_that_of_a_fine_tuned_model():
    tuned = "  tuned: {base: base, finetune: {data: rows, steps: 1, sequence_length: 512}}\n"
    rows = "finetune_data: {rows: {type: passkey, examples: 2, length: 128}}\n"
    text = FILE.replace("systems:", f"{tuned}systems:").replace(
        "tokenizer: base", "tokenizer: tuned"
    )
    assert read(text + rows).root_model("gpt") == "base"


def test_an_api_with_its_own_tokenizer_has_its_own_samples():
    experiment = read(FILE.replace("tokenizer: base", "tokenizer: TINY"))
    assert experiment.root_model("gpt") == "gpt"
    assert max_positions(experiment, "gpt") is None
    characters = FILE.replace(", tokenizer: base", "") + "length_unit: characters\n"
    assert read(characters).root_model("gpt") == "gpt"


def test_a_price_is_in_dollars_per_million_tokens():
    price = ", price: {prompt: 2, completion: 8.5}}"
    api = read(FILE.replace("tokenizer: base}", f"tokenizer: base{price}")).models["gpt"]
    assert api.price == Price(prompt=2, completion=8.5, cached=None)


GPT = "models.gpt"


@pytest.mark.parametrize(
    ("valid", "invalid", "message"),
    [
        (
            "https://api.openai.com/v1",
            "api.openai.com",
            f"{GPT}.api = 'api.openai.com': is not a URL",
        ),
        ("https://api", "https://me:secret@api", f"{GPT}.api"),
        ("com/v1", "com/v1?key=secret", f"{GPT}.api"),
        ("model: gpt, ", "", f"{GPT}.model: is required; add it: the model's name at the API"),
        ("A_KEY", "sk-1234", f"{GPT}.key_env"),
        (
            "tokenizer: base",
            "tokenizer: bass",
            f"{GPT}.tokenizer = 'bass': unknown model; did you",
        ),
        (
            "tokenizer: base",
            "tokenizer: gpt",
            f"{GPT}.tokenizer = 'gpt': runs behind an API itself",
        ),
        ("tokenizer: base", "tokenizer: /tmp", f"{GPT}.tokenizer = '/tmp': has no tokenizer.json"),
        (", tokenizer: base", "", f"{GPT}.tokenizer: is missing, so tokens cannot be counted"),
        ("tokenizer: base", "tokenizer: base, dtype: float16", f"{GPT}.dtype = 'float16': unknown"),
        (
            "tokenizer: base",
            "tokenizer: base, endpoint: completions, system_prompt: Be brief",
            "system_prompt: is only for endpoint chat",
        ),
        (
            "gpt: {model: gpt}",
            "gpt: {model: gpt, attention: {type: random}}",
            "systems.gpt.attention: cannot apply to a model behind an API; remove it",
        ),
        (
            "systems:",
            "  tuned: {base: gpt, finetune: {data: rows, steps: 1, sequence_length: 512}}\n"
            "finetune_data: {rows: {type: passkey, examples: 2, length: 128}}\nsystems:",
            "models.tuned.base = 'gpt': runs behind an API, so its weights are not here",
        ),
        (
            "tasks:",
            "gates: {g: {model: gpt, distill: {data: [r], steps: 1, sequence_length: 512}}}\n"
            "finetune_data: {r: {type: passkey, examples: 2, length: 128}}\ntasks:",
            "gates.g.model = 'gpt': runs behind an API",
        ),
        (
            "tasks:",
            "streams: {long: {tokens: 100}}\ntasks:",
            "streams.long: is read by all systems",
        ),
        (
            "tasks:",
            "streams: {long: {tokens: 100, systems: {gpt: {}}}}\ntasks:",
            "streams.long.systems.gpt: runs behind an API",
        ),
    ],
)
def test_invalid_entries_are_named_in_one_line(valid: str, invalid: str, message: str):
    assert FILE.count(valid) >= 1
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(FILE.replace(valid, invalid))
    assert "\n" not in str(error.value)
