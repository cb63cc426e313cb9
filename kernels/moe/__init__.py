"""Mixture of experts: routing, the grouped matrix product, expert MLPs, and measures of balance."""

from zoo.kernels.moe.balance import Utilisation, expert_utilisation, load_balance_loss, router_z_loss
from zoo.kernels.moe.experts import MoEOutput, moe
from zoo.kernels.moe.latent import Latent
from zoo.kernels.moe.op import grouped_matmul
from zoo.kernels.moe.order import TokenOrder, sort_by_expert
from zoo.kernels.moe.routing import Routing, top_k_routing

__all__ = [
    "Latent",
    "MoEOutput",
    "Routing",
    "TokenOrder",
    "Utilisation",
    "expert_utilisation",
    "grouped_matmul",
    "load_balance_loss",
    "moe",
    "router_z_loss",
    "sort_by_expert",
    "top_k_routing",
]
