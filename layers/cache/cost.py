"""What decoding costs where memory is what it waits for: the law of Kinetics."""

from __future__ import annotations

from typing import NamedTuple

from zoo.layers.cache.kinetics import Kinetics
from zoo.layers.options import require_above, require_at_least


class DecodingCost(NamedTuple):
    """Operations that are computed, and bytes that are read, each as operations: an eFLOP is either."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """eFLOPs."""
        return self.compute + self.memory


def decoding_cost(
    parameters: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    new: int,
    intensity: float,
    trials: int = 1,
    element_size: int = 2,
    policy: Kinetics | None = None,
) -> DecodingCost:
    r"""The cost of ``new`` tokens after a prompt, in each of ``trials`` that share it.

    With P parameters, H query heads and G key-value heads of d channels (of all layers together), a prompt of C tokens,
    L new ones, N trials, b bytes a number and I operations in the time of a byte,

    .. math:: N \left(2 P L + 2 (2 C + L) L H d\right) + I \, b \, (2 C + N L) \, L G d

    as step i of a trial attends to C + i keys: two products of two operations each with H d numbers, and 2 G d numbers
    that are read, of which those of the prompt are read once for all trials. Weights are read once for so many rows
    that they do not count.

    Under ``Kinetics`` a step sees no more than :math:`W = sink + local + k \, block` keys, and for those
    :math:`S = \sum_i \min(W, C + i)` of all steps the middle terms are :math:`4 S H d` and :math:`2 N S G d`: nothing
    is shared, as each trial finds its own blocks. The search adds the products with one mean a block, and the means
    that are read: the terms of full attention over twice the block.

    Args:
        parameters: P.
        heads, kv_heads: H and G: layers times heads of a layer.
        head_dim: d.
        context: C.
        new: L.
        intensity: I, the operations that an accelerator does in the time of reading a byte.
        trials: N.
        element_size: b.
        policy: whose cost it is; full attention's when None.

    Raises:
        ValueError: for numbers below 1 (of the prompt 0), or an intensity of 0 or less.

    Paper: Sadhukhan et al., "Kinetics: Rethinking Test-Time Scaling Laws", arXiv 2506.05333. Its code counts the
    steps as :math:`W L - \max(0, W - C)^2 / 2`, which is this S where L is at least W - C; the first tokens, which
    always stay, are ours to count.
    """
    require_at_least(
        1, parameters=parameters, heads=heads, kv_heads=kv_heads, head_dim=head_dim, new=new, trials=trials,
        element_size=element_size,
    )  # fmt: skip
    require_at_least(0, context=context)
    require_above(0, intensity=intensity)
    query, key = heads * head_dim, kv_heads * head_dim
    products = 2 * (2 * context + new) * new * query  # of a trial
    numbers = (2 * context + trials * new) * new * key  # of all trials
    if policy is not None:
        most = policy.sink + policy.local + policy.top_k * policy.block
        seen = most * new - (max(0, most - context) ** 2 - max(0, most - context - new) ** 2) / 2
        products = 4 * seen * query + products / (2 * policy.block)
        numbers = 2 * trials * seen * key + numbers / (2 * policy.block)
    return DecodingCost(trials * (2 * parameters * new + products), intensity * element_size * numbers)
