"""The state of a training as tensors: taken for a checkpoint, and put back."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from needlework.training.checkpoints import Checkpoint


def tensors_of(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    loss_sum: Tensor,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """What a checkpoint holds: trained parameters, AdamW's means, each process's own state.

    Every process has to call this; the main one gets the tensors, on the CPU.
    """
    tensors = {}

    def add(name: str, value: Tensor) -> None:
        value = whole(value.detach())
        if accelerator.is_main_process:
            tensors[name] = value.cpu().contiguous()

    for i, parameter in enumerate(parameters):
        add(f"{i}.value", parameter)
        for name, value in optimizer.state.get(parameter, {}).items():
            add(f"{i}.{name}", value)
    own = {"loss_sum": loss_sum, "random": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda_random"] = torch.cuda.get_rng_state()
    for name, value in own.items():
        add(f"processes.{name}", accelerator.gather(value.to(accelerator.device)[None]))
    return tensors


def restore(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    accelerator: Accelerator,
) -> Tensor:
    """Put a checkpoint's tensors where they belong; the sum of losses since the last row."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        owner, part = name.split(".")
        found.setdefault(owner, {})[part] = tensor
    # A clone, because torch reads a random state from the beginning of its storage.
    number = accelerator.process_index
    own = {name: value[number].clone() for name, value in found["processes"].items()}
    moments = {}
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parts = found[str(i)]
            parameter.copy_(_as(parameter, parts.pop("value")))
            # The count of steps is a scalar that no process shares out.
            moments[i] = {name: _as(parameter, x) if x.dim() else x for name, x in parts.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(own["random"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_random"])
    return own["loss_sum"].to(accelerator.device)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over processes (FSDP)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` spread over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
