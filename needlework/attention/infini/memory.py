"""The compressive memory of Infini-attention (Munkhdalai, Faruqui and Gopal, 2024, section 2.1.2).

Shapes: B rows, N segments, S slots and Q queries per segment, G key/value heads, D key and Dv value
dimensions. The memory M [B, G, D, Dv] and its normalizer z [B, G, D] are float32 or wider: a
float16 z overflows after a few dozen segments.
"""

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of M and z for activations of `dtype`: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def sigma(x: Tensor, scale: float) -> Tensor:
    """sigma(x) = ELU(scale x) + 1, positive, in the memory's dtype."""
    return torch.nn.functional.elu(scale * x.to(state_dtype(x.dtype))) + 1


def read(sigma_q: Tensor, memory: Tensor, norm: Tensor) -> Tensor:
    """A_mem = sigma(q) M / (sigma(q) z) (equation 3); zero while the memory is empty.

    Args:
        sigma_q: [..., Q, D].
        memory: [..., D, Dv].
        norm: [..., D].

    Returns:
        [..., Q, Dv].
    """
    # Autocast would multiply in half precision.
    with torch.autocast(sigma_q.device.type, enabled=False):
        weight = sigma_q @ norm.unsqueeze(-1)
        return sigma_q @ memory / weight.clamp_min(torch.finfo(weight.dtype).tiny)


def write(
    sigma_k: Tensor, values: Tensor, memory: Tensor, norm: Tensor, update: str
) -> tuple[Tensor, Tensor]:
    """Write N segments one after another and return every state of the memory.

    linear (equation 4): M += sigma(k)^T v. delta (equation 5): M += sigma(k)^T (v - sigma(k) M /
    (sigma(k) z)), with M and z from before the segment. Both: z += sum of sigma(k).

    Args:
        sigma_k: [B, N, G, S, D], zero in empty slots.
        values: [B, N, G, S, Dv].
        memory: [B, G, D, Dv] before the first segment.
        norm: [B, G, D] before the first segment.
        update: linear or delta.

    Returns:
        M [B, N + 1, G, D, Dv] and z [B, N + 1, G, D]; entry j is the state before segment j.
    """
    values = values.to(sigma_k.dtype)
    norms = torch.cat([norm.unsqueeze(1), sigma_k.sum(3)], dim=1).cumsum(1)
    memories = [memory]
    with torch.autocast(sigma_k.device.type, enabled=False):
        if update == "linear":
            written = sigma_k.transpose(3, 4) @ values
            return torch.cat([memory.unsqueeze(1), written], dim=1).cumsum(1), norms
        for j in range(sigma_k.shape[1]):
            new = values[:, j] - read(sigma_k[:, j], memories[j], norms[:, j])
            memories.append(memories[j] + sigma_k[:, j].transpose(2, 3) @ new)
    return torch.stack(memories, dim=1), norms
