"""Sharding over processes (FSDP2), the same on GPUs and, with gloo, on CPUs."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

BLOCK_LISTS = ("blocks", "layers")


def shard(model: nn.Module, mesh: DeviceMesh, *, free_root: bool = False) -> nn.Module:
    """Shard a model in place over the data-parallel dimension of Lightning's mesh.

    Every child of a `ModuleList` or `Sequential` named `blocks` or `layers` is a unit of its own: its weights are
    gathered just before it runs and freed after, and so is what several of them call (a model's `shared_modules`). What
    is outside the blocks (embedding, last norm, head) is the root unit.

    Args:
        model: built alike in every process (same seed, or same checkpoint): each keeps its part of its own copy.
        mesh: with the dimensions "data_parallel" and "tensor_parallel".
        free_root: free the root unit after each forward pass too; else it stays whole until a backward pass.

    Raises:
        ValueError: the mesh splits tensors too, for which the zoo's layers have no plan.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "the zoo's tasks shard over data-parallel processes alone, got tensor_parallel_size="
            f"{mesh['tensor_parallel'].size()}: use the strategy 'fsdp2', or set tensor_parallel_size to 1"
        )
    data_parallel = mesh["data_parallel"]
    for shared in [one for module in model.modules() for one in getattr(module, "shared_modules", ())]:
        fully_shard(shared, mesh=data_parallel)  # before the block that holds it, which is freed before others call it
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in BLOCK_LISTS and isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                fully_shard(block, mesh=data_parallel)
    fully_shard(model, mesh=data_parallel, reshard_after_forward=True if free_root else None)
    return model


def expect_unused(strategy: Strategy) -> None:
    """Before DDP wraps a model: not all that learns has a gradient in every step. Other strategies need not know."""
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, whole and on the CPU.

    Where it is sharded every process must call this, and only the first one gets them; the others get {}.
    """
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` over data alone: by default every process holds 1 / world_size of the model.

    `--trainer.strategy fsdp2`, once `register_strategies()` ran. Lightning's own default splits tensors over the
    processes of a node instead, which the zoo's tasks do not do. Checkpoints are folders with a file per process.

    Args:
        tensor_parallel_size: kept for `ModelParallelStrategy`; must be 1.
        kwargs: of `ModelParallelStrategy`.
    """

    def __init__(self, tensor_parallel_size: int = 1, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, **kwargs)

    def setup_environment(self) -> None:
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def register_strategies() -> None:
    """Make "fsdp2" a name that `Trainer(strategy=...)` knows."""
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", FSDP2Strategy, description="fully sharded data parallel, version 2")
