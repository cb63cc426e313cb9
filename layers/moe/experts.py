"""Experts side by side: their weights, and the products of each with the tokens routed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import full_precision
from zoo.kernels.moe import MoEOutput, Routing, expert_utilisation, moe
from zoo.layers.moe.latent import LatentMatrix
from zoo.layers.moe.widths import ExpertWidths
from zoo.layers.precision import KeepsFloat32, autocast_dtype
from zoo.layers.report import Reports
from zoo.layers.sparse.matrix import SparseMatrix


class RoutedExperts(Reports, KeepsFloat32):
    r"""What every layer of experts has: a router and ``num_experts`` MLPs, held as one tensor a matrix.

    .. math::
        f_e(x) = W^2_e \, \mathrm{glu}(W^1_e x [\, + b^1_e], W^3_e x [\, + b^3_e]) [\, + b^2_e]
        \;\text{(gated) or}\; W^2_e \, \mathrm{gelu}(W^1_e x + b^1_e) + b^2_e

    ``w1`` and ``w3`` are (E, D, F), ``w2`` is (E, F, D), ``b1`` and ``b3`` (E, F) and ``b2`` (E, D). The
    matrices may be compressed (``layers.quant``), and each may be a ``LatentMatrix``. Only experts that a token
    chose are computed, each once for all its tokens; where records hold several widths and ``precision`` is an
    ``ExpertWidths``, with the one that it says.

    Args:
        router: tokens (M, D), and what else the layer gives it, to logits (M, E).
        dim: model width D.
        hidden_dim: width F of an expert.
        num_experts: E.
        top_k: experts a token.
        gated: experts with a gate, in place of two layers.
        act: a function in silu's place, or in gelu's.
        bias: the experts have biases; None: those of two layers.
        glu: of the gate and the other half, in place of act(gate) times that.
        shared: (..., D) -> (..., D), which every token visits besides; None for nothing.

    Raises:
        ValueError: for a top_k outside [1, num_experts].
    """

    def __init__(
        self,
        router: nn.Module,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        gated: bool = True,
        act: Callable[[Tensor], Tensor] | None = None,
        bias: bool | None = None,
        glu: Callable[[Tensor, Tensor], Tensor] | None = None,
        shared: nn.Module | None = None,
    ):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie in [1, num_experts]: got top_k {top_k}, num_experts {num_experts}")
        self.num_experts, self.top_k, self.router = num_experts, top_k, router
        self.act, self.glu = act or (F.silu if gated else F.gelu), glu
        bias = not gated if bias is None else bias
        up, down = (num_experts, dim, hidden_dim), (num_experts, hidden_dim, dim)
        self.w1 = nn.Parameter(torch.empty(up))
        self.b1 = nn.Parameter(torch.empty(num_experts, hidden_dim)) if bias else None
        self.w3 = nn.Parameter(torch.empty(up)) if gated else None
        self.b3 = nn.Parameter(torch.empty(num_experts, hidden_dim)) if gated and bias else None
        self.w2 = nn.Parameter(torch.empty(down))
        self.b2 = nn.Parameter(torch.empty(num_experts, dim)) if bias else None
        self.init_weights()
        self.shared = shared
        self.precision: ExpertWidths | None = None

    def init_weights(self) -> None:
        """Each matrix of an expert as nn.Linear's, uniform within 1 / sqrt(inputs); biases 0."""
        for weight in self.expert_parameters():
            if isinstance(weight, LatentMatrix):
                weight.reset_parameters()
            elif weight.dim() == 3:
                nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
            else:
                nn.init.zeros_(weight)

    def expert_parameters(self) -> list[nn.Parameter | LatentMatrix]:
        """All that belongs to one expert or another."""
        every = (self.w1, self.b1, self.w3, self.b3, self.w2, self.b2)
        return [weight for weight in every if weight is not None]

    @torch.no_grad()
    def divide_output(self, divisor: float) -> None:
        """Divide the matrices that lead out of the experts."""
        last = self.w2.each if isinstance(self.w2, LatentMatrix) else self.w2
        last.div_(divisor)

    def latent_matrices(
        self, rank: int, group_size: int | None = None, out_rank: int | None = None
    ) -> dict[str, LatentMatrix]:
        """What could stand in the place of w1 and w3, and with an out_rank of w2: name -> fresh factors.

        Args:
            rank: width of the latent spaces into the experts.
            group_size: neighbouring experts that share one; None for all.
            out_rank: width of the latent spaces out of them.

        Raises:
            ValueError: for matrices that are compressed or latent already, or sizes as ``LatentMatrix`` says.
        """
        ranks = {name: r for name, r in (("w1", rank), ("w3", rank), ("w2", out_rank)) if r is not None}
        made, size = {}, group_size or self.num_experts
        if self.num_experts % size:
            raise ValueError(f"group_size must divide the experts, got {size} for {self.num_experts} experts")
        for name, width in ranks.items():
            weight = getattr(self, name)
            if isinstance(weight, nn.Parameter):
                experts, inputs, outputs = weight.shape
                with weight.device:
                    matrix = LatentMatrix(experts, experts // size, inputs, outputs, width, out=name == "w2")
                made[name] = matrix.to(weight.dtype).train(self.training)
            elif weight is not None:
                raise ValueError(f"{name} of the experts must be plain matrices, it is a {type(weight).__name__}")
        return made

    def replace_matrices(self, made: Mapping[str, nn.Module]) -> None:
        """Put what stands for matrices in their place, by name."""
        for name, matrix in made.items():
            delattr(self, name)
            self.add_module(name, matrix)

    @property
    def num_idle_parameters(self) -> int:
        """Of the experts that a token does not visit."""
        return sum(
            weight.num_idle(self.top_k)
            if isinstance(weight, (LatentMatrix, SparseMatrix))
            else (self.num_experts - self.top_k) * (weight.shape.numel() // self.num_experts)
            for weight in self.expert_parameters()
        )

    def visit(
        self, tokens: Tensor, routing: Routing, kept: Tensor | None = None, capacity: int | None = None
    ) -> MoEOutput:
        """Tokens (M, D) through their experts, weighted and summed; under autocast in its dtype.

        Args:
            kept: (M,) bool; where it is False no expert is visited and the output is 0.
            capacity: see ``moe``.
        """
        if kept is not None:
            routing = routing._replace(experts=routing.experts.masked_fill(~kept[:, None], self.num_experts))
        if self.precision is None or not any(map(_has_widths, self._matrices)):
            return self._visit(tokens, routing, capacity)
        parts = [self._visit(tokens, part, capacity, width) for width, part in self.precision.routings(
            tokens, routing)] or [self._visit(tokens, routing, capacity)]  # fmt: skip
        return MoEOutput(sum(part.output for part in parts), sum(part.dropped for part in parts))  # type: ignore[arg-type]

    @property
    def _matrices(self) -> tuple[Any, Any, Any]:
        return self.w1, self.w3, self.w2

    def _visit(self, tokens: Tensor, routing: Routing, capacity: int | None, width: int | None = None) -> MoEOutput:
        low = autocast_dtype(tokens.device.type)
        w1, w3, w2 = (w.at(width) if width and _has_widths(w) else w for w in self._matrices)
        operands = (tokens, w1, self.b1, w3, self.b3, w2, self.b2)
        x, w1, b1, w3, b3, w2, b2 = (operand(t, low) for t in operands)
        options = {"activation": self.act, "glu": self.glu, "down_bias": b2, "capacity": capacity}
        with full_precision(tokens.device):
            if w3 is None:
                return moe(x, routing, w1, w2, up_bias=b1, **options)  # type: ignore[arg-type]
            return moe(x, routing, w3, w2, gate=w1, up_bias=b3, gate_bias=b1, **options)  # type: ignore[arg-type]

    def add_shared(self, y: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """y (..., D), of the routed experts, plus ``shared`` of x (..., D); nothing where mask (...) is False."""
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if mask is None else shared.masked_fill(~mask[..., None], 0.0))

    def measure(self, routing: Routing, kept: Tensor | None = None) -> dict[str, Tensor]:
        """ "tokens_per_expert" (E,) int64, and "utilisation" (), the exponential of the entropy of the choices over E:
        1 when even, 1/E when one expert gets all."""
        _, entropy, counts = expert_utilisation(routing.experts, self.num_experts, mask=kept)
        return {"tokens_per_expert": counts, "utilisation": entropy.exp() / self.num_experts}


def _has_widths(weight: Any) -> bool:
    return getattr(weight, "has_widths", False)


def operand(weight: object, low: torch.dtype | None) -> Any:
    """As ``kernels.moe`` takes it, in the dtype of autocast where there is one."""
    if isinstance(weight, LatentMatrix):
        return weight.operand(low)
    return weight.to(low) if low is not None and isinstance(weight, Tensor) else weight
