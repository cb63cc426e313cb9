"""Latent attention of one token, which attends to the vectors that keys and values are made of."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.kernels.step_program import Matrix, Value, dense, parts
from zoo.layers.attention.latent import LatentAttention
from zoo.layers.quant.layers import Linear
from zoo.layers.step.attention import rotation
from zoo.layers.step.binders import Latent
from zoo.layers.step.linears import matrix
from zoo.layers.step.writer import Undescribed, Writer, describes


@describes(LatentAttention)
def _latent_attention(p: Writer, m: LatentAttention, x: Value) -> Value:
    x, heads, nope = p.whole(x), m.num_heads, m.qk_nope_head_dim
    q = p.call(m.q_proj, x) if m.q_lora_rank is None else p.call(m.q_a_proj, x)
    if m.q_lora_rank is not None:
        q = p.call(m.q_b_proj, p.call(m.q_a_layernorm, q))
    latent, key = p.call(m.kv_a_proj_with_mqa, x).split(m.kv_lora_rank, m.qk_rope_head_dim)
    latent, turning, every = p.call(m.kv_a_layernorm, latent), Value(q.tensor[:, nope:]), p.every(heads)
    rotary = None if m.rotary is None else rotation(p, m.rotary)
    turn = p.turn(turning, key, latent, m.qk_rope_head_dim, rotary, heads)
    to_keys, to_values = _by_head(p, m)
    seen = p.linear_of(q, to_keys, None, every)
    y, attend = p.attend(turning, 1, m.qk_rope_head_dim, m.scale, latent=seen, heads=heads)
    y = p.linear_of(y, to_values, None, every)
    p.bind(Latent(p, turn, attend, m, q, y))
    return p.call(m.out_proj, y)


def _by_head(p: Writer, m: LatentAttention) -> tuple[Matrix, Matrix]:
    """The matrices of each head: from a query to the latent vectors, and from what it found of these to a value.

    The first multiplies the other way round than the layer's own does: of a record it is kept in numbers.
    """
    linear, heads = m.kv_b_proj, m.num_heads
    p.expect(linear, nn.Linear, Linear)
    whole = matrix(p, linear.weight)
    if whole.rounded:
        raise Undescribed("latent vectors that are rounded")
    numbers = linear.weight.detach() if isinstance(linear.weight, Tensor) else linear.weight.dequantise()
    keys = dense(p, numbers.unflatten(0, (heads, -1))[:, : m.qk_nope_head_dim])
    return keys, parts(whole, heads, m.qk_nope_head_dim, m.v_head_dim)
