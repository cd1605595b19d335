"""Infini classes for any family of decoders, made and registered when first asked for.

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
"""Of model types."""


def _register(family: str) -> None:
    """Make and register the classes of one family."""
    config_base = CONFIG_MAPPING[family]
    base, causal = MODEL_MAPPING[config_base], MODEL_FOR_CAUSAL_LM_MAPPING[config_base]
    in_float32 = {*(causal._keep_in_fp32_modules_strict or ()), "balance_factors"}

    class Config(config_base):
        model_type = PREFIX + family
        infini: dict | None = None
        infini_unrotated_layers: list[int] | None = None
        needlework_attention: str = "infini"

    class Model(InfiniModel, base):
        config_class = Config
        _keep_in_fp32_modules_strict = in_float32

    class CausalLM(InfiniForCausalLM, causal):
        config_class = Config
        _keep_in_fp32_modules_strict = in_float32

    for cls, parent in ((Config, config_base), (Model, base), (CausalLM, causal)):
        cls.__name__ = cls.__qualname__ = f"Infini{parent.__name__}"
        setattr(sys.modules[__name__], cls.__name__, cls)
    AutoConfig.register(Config.model_type, Config)
    AutoModel.register(Config, Model)
    AutoModelForCausalLM.register(Config, CausalLM)
    # How checkpoints name and stack weights (of experts, say) goes by model type too.
    mappings = (get_checkpoint_conversion_mapping(name) for name in (causal.__name__, family))
    if mapping := next(filter(None, mappings), None):
        register_checkpoint_conversion_mapping(Config.model_type, mapping)


class _OnDemand(dict):
    """Configurations registered by model type; Infini ones are made when they are looked up."""

    def __contains__(self, model_type: object) -> bool:
        if super().__contains__(model_type):
            return True
        family = str(model_type).removeprefix(PREFIX)
        known = family != model_type and family in CONFIG_MAPPING
        if not known or CONFIG_MAPPING[family] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return False
        _register(family)
        return True


# transformers has no public way to learn that an unknown model type was asked for.
CONFIG_MAPPING._extra_content = _OnDemand(CONFIG_MAPPING._extra_content)
