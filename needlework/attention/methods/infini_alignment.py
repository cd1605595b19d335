"""Evaluate an Infini model with another segment alignment than its checkpoint's."""

from transformers import PreTrainedModel

from needlework.attention.base import Adjustment
from needlework.config.attention.infini import InfiniAlignment


class Method(Adjustment[InfiniAlignment]):
    """Overrides `segment_alignment` in the model's config while it is applied."""

    def attach(self, model: PreTrainedModel) -> None:
        if not hasattr(model.config, "infini"):
            raise ValueError(
                f"infini_alignment: model_type {model.config.model_type} has no Infini-attention; "
                "choose an Infini model, or remove the system's attention"
            )
        self._config, self._original = model.config, model.config.infini
        override = {"segment_alignment": self.system.segment_alignment}
        model.config.infini = {**model.config.infini, **override}

    def detach(self) -> None:
        self._config.infini = self._original
