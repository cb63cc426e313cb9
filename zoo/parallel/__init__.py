"""One model over several processes: layers, experts or sequences shared out by torch.distributed's own engines."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from zoo.registry import nearest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["PLANS", "Parallel", "parallelize", "whole_state_dict"]

Model = TypeVar("Model", bound=nn.Module)
PLANS = {
    "tensor": "heads, channels and experts of each layer",
    "sequence": "the same, and between the layers the tokens",
    "expert": "experts; each process has sequences of its own, whose tokens are sent to them",
    "context": "the tokens of each sequence; keys and values go round",
    "token_ring": "the tokens of each sequence; queries go round one way and outputs straight back (TokenRing)",
}


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How a model is shared out, as ``model.parallel``.

    Attributes:
        plan: its name.
        mesh: of the processes.
        shared: names of the layers whose work is shared out.
        whole: names of mixers and feed-forward layers that every process computes wholly, as there is no way to share
            them.
    """

    plan: str
    mesh: Any
    shared: tuple[str, ...]
    whole: tuple[str, ...] = ()

    def __deepcopy__(self, memo: Any) -> Parallel:
        return self  # a copy of a model is among the same processes


def parallelize(model: Model, mesh: DeviceMesh, plan: str = "tensor", *, node_size: int | None = None) -> Model:
    r"""Share a model out among processes, in place: outputs and gradients are those of one process, to rounding.

    >>> mesh = init_device_mesh("cpu", (2,))  # of torch.distributed.device_mesh, in each of two processes
    >>> model = zoo.parallelize(zoo.create_model("transformer_nano"), mesh, "tensor")

    ========== ============================ ==================================== ==========================
    plan       each process has             each process is given                processes send, a layer
    ========== ============================ ==================================== ==========================
    tensor     some heads, channels,        all tokens, and finds all logits     two sums of all tokens
               experts
    sequence   the same                     the same                             the same bytes, in parts
    expert     some experts                 sequences of its own                 a token to each expert
    context    all weights                  all tokens; computes some            keys and values
    token_ring all weights                  the same                             queries and outputs
    ========== ============================ ==================================== ==========================

    "tensor" and "sequence" are torch's ``parallelize_module``: column- and row-wise linear layers in attention and
    feed-forward layers, channels of Mamba, groups of heads of Mamba-2, which must have as many (its paper, section
    8.1); experts a process. What has no such plan stays whole (``model.parallel.whole``). Under "sequence" residual
    stream and norms hold a part of the tokens (Korthikanti et al., arXiv 2205.05198). The loss under "expert" is that
    of the process's own sequences, and gradients are those of the mean over the processes. "context" and "token_ring"
    are for causal attention without softcap and sinks; a process has the r-th block of 2 P and the r-th last one, which
    is equal work. With a window, or with ``seq_idx``, keys or queries go straight to the processes that have what they
    see, and to no other: messages then depend on the data, and work may differ.

    Parameters are DTensors from then on; optimisers, clipping and torch's distributed checkpoints take them as they
    are. ``zoo.parallel.Traffic`` counts what is sent.

    Args:
        model: plain, and alike in every process.
        mesh: of one dimension.
        plan: one of ``zoo.parallel.PLANS``.
        node_size: under "expert": processes of a node; tokens go to the place within the node first, then to the node
            (SE-MoE, arXiv 2205.10034). None for all at once.

    Raises:
        ValueError: for an unknown plan, no mesh, sizes that the processes do not divide, or a model that has nothing to
            share.

    Papers: Shoeybi et al., "Megatron-LM", arXiv 1909.08053; Liu et al., "Ring Attention", arXiv 2310.01889; Wang et
    al., "TokenRing", arXiv 2412.20501.
    """
    from torch.distributed.device_mesh import DeviceMesh

    from zoo.parallel.local import let_go
    from zoo.parallel.plans import MAKES

    if plan not in PLANS:
        raise ValueError(f"there is no plan {plan!r}{nearest(str(plan), PLANS)}; plans: {', '.join(PLANS)}")
    if not isinstance(mesh, DeviceMesh):
        raise ValueError(
            f"mesh must be of the processes, as torch.distributed.device_mesh.init_device_mesh makes it, got {mesh!r}"
        )
    if mesh.ndim != 1:
        raise ValueError(f'a model is shared over one dimension of a mesh, got {mesh.ndim}: give one, as mesh["tp"]')
    if getattr(model, "parallel", None) is not None:
        raise ValueError("the model is shared out already: build it anew for another plan")
    if node_size is not None and (plan != "expert" or node_size < 1 or mesh.size() % node_size):
        raise ValueError(
            f"node_size is of plan='expert' and divides the processes, got {node_size} for {mesh.size()} processes and "
            f"plan={plan!r}"
        )
    shared, whole = MAKES[plan](model, mesh, *(() if plan != "expert" else (node_size,)))
    let_go(model)
    model.parallel = Parallel(plan, mesh, tuple(shared), tuple(whole))  # type: ignore[assignment]
    return model


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model that was shared out, as it was before: what every process must ask for, and gets."""
    from zoo.parallel.local import whole_state_dict

    return whole_state_dict(model)


def __getattr__(name: str) -> Any:
    if name == "Traffic":
        from zoo.parallel.traffic import Traffic

        return Traffic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
