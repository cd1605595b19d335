"""Every attention system, found by looking into this folder."""

import importlib
import pkgutil

from needlework.config import attention
from needlework.config.attention.base import Attention
from needlework.config.base import tagged_union, with_type

for _module in pkgutil.iter_modules(attention.__path__, f"{attention.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)

AnyAttention = tagged_union(Attention)
"""A value of `attention:`, identified by its `type`."""

SYSTEMS: dict[str, type[Attention]] = {
    cls.model_fields["type"].default: cls for cls in with_type(Attention)
}
"""Every system by its type, in the order of the types."""


def attention_class(name: str) -> type[Attention]:
    """The class of attention systems of type `name`; Attention itself for an unknown type."""
    return SYSTEMS.get(name, Attention)
