"""Training state as tensors: collected for a checkpoint, and restored from one."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from needlework.training.checkpoints import Checkpoint


def collect_state(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    loss_sum: Tensor,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Collect trained parameters, AdamW's moments, and each process's loss sum and random state.

    Every process has to call this; only the main one gets the tensors, on the CPU.
    """
    tensors: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        value = full_tensor(value.detach())
        if accelerator.is_main_process:
            tensors[name] = value.cpu().contiguous()

    for i, parameter in enumerate(parameters):
        add(f"{i}.value", parameter)
        for name, value in optimizer.state.get(parameter, {}).items():
            add(f"{i}.{name}", value)
    per_process = {"loss_sum": loss_sum, "random": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        per_process["cuda_random"] = torch.cuda.get_rng_state()
    for name, value in per_process.items():
        add(f"processes.{name}", accelerator.gather(value.to(accelerator.device)[None]))
    return tensors


def restore_state(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    accelerator: Accelerator,
) -> Tensor:
    """Load a checkpoint's tensors; return the sum of losses since the last metrics row."""
    by_owner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        owner, part = name.split(".")
        by_owner.setdefault(owner, {})[part] = tensor
    # Clone, because torch reads a random state from the beginning of its storage.
    process = accelerator.process_index
    per_process = {name: value[process].clone() for name, value in by_owner["processes"].items()}
    moments = {}
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parts = by_owner[str(i)]
            parameter.copy_(_distribute_like(parameter, parts.pop("value")))
            # The step count is a scalar, which is never distributed.
            moments[i] = {
                name: _distribute_like(parameter, x) if x.dim() else x for name, x in parts.items()
            }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(per_process["random"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(per_process["cuda_random"])
    return per_process["loss_sum"].to(accelerator.device)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that FSDP shards over processes; return any other unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _distribute_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """Shard `tensor` over the processes in the same way as `reference`."""
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(reference.device), reference.device_mesh, reference.placements
    )
