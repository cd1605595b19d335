"""Infini classes for any decoder family, defined and registered on first use.

`infini_llama` is a LlamaForCausalLM with gates and a memory; AutoConfig, AutoModel and
AutoModelForCausalLM open it once this module is imported.
"""

import sys

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from needlework.attention.infini.model import InfiniForCausalLM, InfiniModel

PREFIX = "infini_"
"""Prefix of model types."""


def _register(family: str) -> None:
    """Define and register the classes of one family."""
    config_base = CONFIG_MAPPING[family]
    base, causal = MODEL_MAPPING[config_base], MODEL_FOR_CAUSAL_LM_MAPPING[config_base]
    in_float32 = {*(causal._keep_in_fp32_modules_strict or ()), "balance_factors"}

    # The bases are classes that transformers chooses at run time.
    class Config(config_base):  # type: ignore[valid-type, misc]
        model_type = PREFIX + family
        infini: dict | None = None
        infini_unrotated_layers: list[int] | None = None
        needlework_attention: str = "infini"

    class Model(InfiniModel, base):  # type: ignore[valid-type, misc]
        config_class = Config
        _keep_in_fp32_modules_strict = in_float32

    class CausalLM(InfiniForCausalLM, causal):  # type: ignore[valid-type, misc]
        config_class = Config
        _keep_in_fp32_modules_strict = in_float32

    for cls, parent in ((Config, config_base), (Model, base), (CausalLM, causal)):
        cls.__name__ = cls.__qualname__ = f"Infini{parent.__name__}"
        setattr(sys.modules[__name__], cls.__name__, cls)
    AutoConfig.register(Config.model_type, Config)
    AutoModel.register(Config, Model)
    AutoModelForCausalLM.register(Config, CausalLM)
    # The mapping of weight names (stacked experts, for example) depends on the model type too.
    mappings = (get_checkpoint_conversion_mapping(name) for name in (causal.__name__, family))
    if mapping := next(filter(None, mappings), None):
        register_checkpoint_conversion_mapping(Config.model_type, mapping)


class _LazyConfigs(dict):
    """Config classes by model type; Infini classes are defined when first looked up."""

    def __contains__(self, model_type: object) -> bool:
        if super().__contains__(model_type):
            return True
        family = str(model_type).removeprefix(PREFIX)
        known = family != model_type and family in CONFIG_MAPPING
        if not known or CONFIG_MAPPING[family] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return False
        _register(family)
        return True


# transformers has no public hook for the lookup of an unknown model type.
CONFIG_MAPPING._extra_content = _LazyConfigs(CONFIG_MAPPING._extra_content)
