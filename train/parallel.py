"""Models over processes: ZeRO's stages by FSDP2, the plans of ``zoo.parallelize``; on GPUs and, with gloo, on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from zoo.parallel import PLANS, parallelize, whole_state_dict
from zoo.registry import nearest

BLOCK_LISTS = ("blocks", "layers")


def shard(model: nn.Module, mesh: DeviceMesh, *, free: bool | None = None, free_root: bool = False) -> nn.Module:
    """Shard a model in place over the data-parallel dimension of Lightning's mesh.

    Every child of a `ModuleList` or `Sequential` named `blocks` or `layers` is a unit of its own: its weights are
    gathered just before it runs and freed after, and so is what several of them call (a model's `shared_modules`). What
    is outside the blocks (embedding, last norm, head) is the root unit.

    Args:
        model: built alike in every process (same seed, or same checkpoint): each keeps its part of its own copy.
        mesh: with the dimensions "data_parallel" and "tensor_parallel".
        free: free every unit after a forward pass, or none, which then stay whole until the backward pass; None: all
            but the root unit.
        free_root: where ``free`` is None, free the root unit after each forward pass too.

    Raises:
        ValueError: the mesh splits tensors too, see ``PlanStrategy``.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "this strategy shards over data-parallel processes alone, got tensor_parallel_size="
            f"{mesh['tensor_parallel'].size()}: use the strategy 'tensor_parallel', or set tensor_parallel_size to 1"
        )
    data_parallel = mesh["data_parallel"]
    for shared in [one for module in model.modules() for one in getattr(module, "shared_modules", ())]:
        # before the block that holds it, which is freed before others call it
        fully_shard(shared, mesh=data_parallel, reshard_after_forward=free)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in BLOCK_LISTS and isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                fully_shard(block, mesh=data_parallel, reshard_after_forward=free)
    fully_shard(model, mesh=data_parallel, reshard_after_forward=True if free is None and free_root else free)
    return model


def expect_unused(strategy: Strategy) -> None:
    """Before DDP wraps a model: not all that learns has a gradient in every step. Other strategies need not know."""
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, whole and on the CPU, as they were named before the model was sharded.

    Where it is sharded every process must call this, and only the first one gets them; the others get {}.
    """
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    if getattr(model, "parallel", None) is not None:
        whole = whole_state_dict(model)
        return {name: value.detach().cpu() for name, value in whole.items()} if dist.get_rank() == 0 else {}
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` over data alone: by default every process holds 1 / world_size of the model.

    `--trainer.strategy fsdp2`, once `register_strategies()` ran. Lightning's own default splits tensors over the
    processes of a node instead, which the zoo's tasks do not do. Checkpoints are folders with a file per process.

    Args:
        tensor_parallel_size: kept for `ModelParallelStrategy`; must be 1.
        free: see `shard`.
        kwargs: of `ModelParallelStrategy`.
    """

    def __init__(self, tensor_parallel_size: int = 1, free: bool | None = None, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=tensor_parallel_size, **kwargs)
        self.free = free

    def setup_environment(self) -> None:
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class PlanStrategy(ModelParallelStrategy):
    """`zoo.parallelize` over all processes: `--trainer.strategy tensor_parallel` and those beside it.

    All processes are given the same data, but under the plan "expert". Checkpoints are folders with a file per process,
    and resume with another number of processes too.

    Args:
        plan: one of ``zoo.parallel.PLANS``.
        node_size: see ``zoo.parallelize``.
        kwargs: of `ModelParallelStrategy`.
    """

    def __init__(self, plan: str = "tensor", node_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if plan not in PLANS:
            raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")
        self.plan, self.node_size = plan, node_size

    def setup_environment(self) -> None:
        every = self.num_nodes * self.num_processes
        self._data_parallel_size, self._tensor_parallel_size = (every, 1) if self.plan == "expert" else (1, every)
        super().setup_environment()


def distribute(model: nn.Module, strategy: Strategy, mesh: DeviceMesh, *, free_root: bool = False) -> nn.Module:
    """Spread a model over Lightning's mesh, in place, as its strategy has it: see ``shard`` and ``PlanStrategy``."""
    if isinstance(strategy, PlanStrategy):
        dimension = "data_parallel" if strategy.plan == "expert" else "tensor_parallel"
        return parallelize(model, mesh[dimension], strategy.plan, node_size=strategy.node_size)
    return shard(model, mesh, free=None if free_root else getattr(strategy, "free", None), free_root=free_root)


def data_processes(trainer: Trainer) -> tuple[int, int]:
    """The number of this process among those with data of their own, and how many these are."""
    shares = trainer.distributed_sampler_kwargs
    return (shares["rank"], shares["num_replicas"]) if shares else (0, 1)


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """An optimiser of which each process keeps the states of some parameters, whole ones, and updates those.

    Args:
        groups: of all parameters.
        make: makes the optimiser of some groups.
    """

    def __init__(self, groups: list[dict[str, Any]], make: Callable[..., Optimizer]) -> None:
        super().__init__(groups, make)  # type: ignore[arg-type]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """One more, with the optimiser's own numbers where it says none, which torch's class leaves out."""
        own = self.optim.defaults if hasattr(self, "optim") else {}
        super().add_param_group({**own, **param_group})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's part, once: torch's class keeps a copy beside its own optimiser's."""
        self.optim.load_state_dict(self._own_part(state_dict))
        for own, shown in zip(self.optim.param_groups, self.param_groups, strict=True):
            shown.update({name: value for name, value in own.items() if name != "params"})

    def _own_part(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        places = {parameter: place for place, parameter in enumerate(parameters)}
        groups, state, count = [], {}, 0
        for saved, own in zip(state_dict["param_groups"], self.optim.param_groups, strict=True):
            groups.append({**saved, "params": []})
            for parameter in own["params"]:
                if (found := state_dict["state"].get(places[parameter])) is not None:
                    state[count] = found
                groups[-1]["params"].append(count)
                count += 1
        return {"state": state, "param_groups": groups}


class ZeRO1Strategy(DDPStrategy):
    """DDP whose processes share the optimiser's states: `--trainer.strategy zero1`."""

    sharded_optimizer = ShardedOptimizer


STRATEGIES: dict[str, tuple[type[Strategy], dict[str, Any], str]] = {
    "fsdp2": (FSDP2Strategy, {}, "fully sharded data parallel, version 2"),
    "zero1": (ZeRO1Strategy, {}, "ZeRO stage 1: states of the optimiser sharded"),
    "zero2": (FSDP2Strategy, {"free": False}, "ZeRO stage 2: gradients too; weights whole from forward to backward"),
    "zero3": (FSDP2Strategy, {"free": True}, "ZeRO stage 3: weights too, whole one block at a time"),
    "tensor_parallel": (PlanStrategy, {"plan": "tensor"}, PLANS["tensor"]),
    "sequence_parallel": (PlanStrategy, {"plan": "sequence"}, PLANS["sequence"]),
    "expert_parallel": (PlanStrategy, {"plan": "expert"}, PLANS["expert"]),
    "context_parallel": (PlanStrategy, {"plan": "context"}, PLANS["context"]),
    "token_ring": (PlanStrategy, {"plan": "token_ring"}, PLANS["token_ring"]),
}


def check_strategy(name: Any) -> None:
    """Raise a ValueError for the name of a strategy that neither this library nor Lightning has."""
    register_strategies()
    lightning = [known for known in StrategyRegistry.available_strategies() if known not in STRATEGIES]
    if isinstance(name, str) and name not in ("auto", *STRATEGIES, *lightning):
        raise ValueError(
            f"there is no strategy {name!r}{nearest(name, [*STRATEGIES, *lightning])}; strategies: "
            f"{', '.join(STRATEGIES)}, and Lightning's auto, {', '.join(sorted(lightning))}"
        )


def register_strategies() -> None:
    """Make "fsdp2", "zero1", "tensor_parallel" and the others names that `Trainer(strategy=...)` knows."""
    for name, (strategy, options, description) in STRATEGIES.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, strategy, description=description, **options)
