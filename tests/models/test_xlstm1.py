"""The first xLSTM against its equations written apart, under the tensor names of the authors' package.

The authors' own modules, run beside ours with their plain sLSTM, agree in float64 to 1e-14 in every decode step and to
3e-7 for whole sequences, where their parallel form begins without a stabiliser, which eps counts relative to.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.checkpoints.convert import to_zoo

DIM, DEPTH, HEADS, INNER, MLP, VOCAB, BLOCK = 12, 3, 2, 20, 14, 40, 5
OPTIONS = {
    "vocab_size": VOCAB, "dim": DIM, "depth": DEPTH, "slstm_layers": (1,), "num_heads": HEADS, "inner_dim": INNER,
    "mlp_dim": MLP, "block_size": BLOCK,
}  # fmt: skip
Weights = dict[str, Tensor]


def published(cuda: bool) -> Weights:
    """Random weights under the authors' names; the sLSTM's as its CUDA cell or as its plain one holds them."""

    def randn(*shape: int) -> Tensor:
        return 0.4 * torch.randn(*shape, dtype=torch.float64)

    size = DIM // HEADS
    weights = {"token_embedding.weight": randn(VOCAB, DIM), "lm_head.weight": randn(VOCAB, DIM)}
    made = {"post_blocks_norm.weight": randn(DIM)}
    for index in (0, 2):
        block = f"blocks.{index}."
        made |= {f"{block}xlstm_norm.weight": randn(DIM)}
        made |= {f"{block}xlstm.{name}_proj.weight": randn(INNER // BLOCK, BLOCK, BLOCK) for name in "qkv"}
        made |= {
            f"{block}xlstm.proj_up.weight": randn(2 * INNER, DIM),
            f"{block}xlstm.proj_down.weight": randn(DIM, INNER),
        }
        made |= {f"{block}xlstm.conv1d.conv.weight": randn(INNER, 1, 4), f"{block}xlstm.conv1d.conv.bias": randn(INNER)}
        for gate in ("igate", "fgate"):
            made[f"{block}xlstm.mlstm_cell.{gate}.weight"] = randn(HEADS, 3 * INNER)
            made[f"{block}xlstm.mlstm_cell.{gate}.bias"] = randn(HEADS)
        made |= {f"{block}xlstm.mlstm_cell.outnorm.weight": randn(INNER), f"{block}xlstm.learnable_skip": randn(INNER)}
    made |= {f"blocks.1.xlstm.{gate}gate.weight": randn(HEADS, size, size) for gate in "ifzo"}
    made |= {"blocks.1.xlstm.conv1d.conv.weight": randn(DIM, 1, 4), "blocks.1.xlstm.conv1d.conv.bias": randn(DIM)}
    kernel = (HEADS, size, 4 * size) if cuda else (HEADS, 4 * size, size)
    made |= {"blocks.1.xlstm.slstm_cell._recurrent_kernel_": randn(*kernel)}
    made |= {"blocks.1.xlstm.slstm_cell._bias_": randn(4 * DIM), "blocks.1.xlstm.group_norm.weight": randn(DIM)}
    made |= {"blocks.1.xlstm_norm.weight": randn(DIM), "blocks.1.ffn_norm.weight": randn(DIM)}
    made |= {"blocks.1.ffn.proj_up.weight": randn(2 * MLP, DIM), "blocks.1.ffn.proj_down.weight": randn(DIM, MLP)}
    return weights | {f"xlstm_block_stack.{name}": tensor for name, tensor in made.items()}


def norm(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    parts = x.unflatten(-1, (groups, -1))
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return parts.flatten(-2) * (1 + weight)


def conv(x: Tensor, w: Weights, name: str) -> Tensor:
    weight, bias = w[f"{name}conv1d.conv.weight"][:, 0], w[f"{name}conv1d.conv.bias"]
    padded = F.pad(x, (0, 0, 3, 0))
    return F.silu(sum(padded[t : t + len(x)] * weight[:, t] for t in range(4)) + bias)


def headwise(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([part @ w.T for part, w in zip(x.chunk(len(weight), -1), weight, strict=True)], -1)


def matrix_block(x: Tensor, w: Weights, name: str) -> Tensor:
    """x (T, dim): every pair of steps weighted by its gates, without a recurrence."""
    u, z = (x @ w[f"{name}proj_up.weight"].T).chunk(2, -1)
    a = conv(u, w, name)
    q, k, v = (headwise(t, w[f"{name}{n}_proj.weight"]) for t, n in ((a, "q"), (a, "k"), (u, "v")))
    gates = torch.cat([q, k, v], -1)
    i, f = (gates @ w[f"{name}mlstm_cell.{g}.weight"].T + w[f"{name}mlstm_cell.{g}.bias"] for g in ("igate", "fgate"))
    heads = []
    for h, (qh, kh, vh) in enumerate(zip(*(t.chunk(HEADS, -1) for t in (q, k, v)), strict=True)):
        total = F.logsigmoid(f[:, h]).cumsum(0)
        logs = total[:, None] - total[None, :] + i[None, :, h]
        weights = (qh @ kh.T / math.sqrt(INNER // HEADS) * logs.exp()).tril()
        m = torch.maximum(total, logs.masked_fill(~torch.ones_like(logs).tril().bool(), -math.inf).amax(1))
        heads.append(weights @ vh / (weights.sum(1).abs().clamp(min=1) + 1e-6 * m.exp())[:, None])
    h = norm(torch.cat(heads, -1), w[f"{name}mlstm_cell.outnorm.weight"], HEADS)
    return ((h + w[f"{name}learnable_skip"] * a) * F.silu(z)) @ w[f"{name}proj_down.weight"].T


def scalar_block(x: Tensor, w: Weights, name: str, cuda: bool) -> Tensor:
    """x (T, dim); the layer's "fgate" feeds the input gate."""
    a, size = conv(x, w, name), DIM // HEADS
    parts = [headwise(t, w[f"{name}{g}gate.weight"]) for t, g in ((a, "f"), (a, "i"), (x, "z"), (x, "o"))]
    kernel, bias = w[f"{name}slstm_cell._recurrent_kernel_"], w[f"{name}slstm_cell._bias_"]
    rows = []
    h = c = n = torch.zeros(DIM, dtype=torch.float64)
    for t in range(len(x)):
        logits = []
        for gate in range(4):
            recurrent = []
            for head, before in enumerate(h.chunk(HEADS)):
                span = slice(gate * size, (gate + 1) * size)
                recurrent.append(before @ kernel[head][:, span] if cuda else kernel[head][span] @ before)
            b = bias.view(HEADS, 4, size)[:, gate] if cuda else bias.view(4, HEADS, size)[gate]
            logits.append(parts[gate][t] + torch.cat(recurrent) + b.flatten())
        i, f, z, o = logits[0].exp(), logits[1].sigmoid(), logits[2].tanh(), logits[3].sigmoid()
        c, n = f * c + i * z, f * n + i
        h = o * c / n
        rows.append(h)
    return norm(torch.stack(rows), w[f"{name}group_norm.weight"], HEADS)


def logits_of(tokens: Tensor, weights: Weights, cuda: bool) -> Tensor:
    """tokens (T,) -> (T, vocabulary)."""
    w = {name.removeprefix("xlstm_block_stack."): tensor for name, tensor in weights.items()}
    x = w["token_embedding.weight"][tokens]
    for index in range(DEPTH):
        block = f"blocks.{index}."
        u = norm(x, w[f"{block}xlstm_norm.weight"])
        if index != 1:
            x = x + matrix_block(u, w, f"{block}xlstm.")
            continue
        x = x + scalar_block(u, w, f"{block}xlstm.", cuda)
        gate, up = (norm(x, w[f"{block}ffn_norm.weight"]) @ w[f"{block}ffn.proj_up.weight"].T).chunk(2, -1)
        x = x + (F.gelu(gate) * up) @ w[f"{block}ffn.proj_down.weight"].T
    return norm(x, w["post_blocks_norm.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("cuda", [False, True], ids=["plain", "cuda"])
@torch.no_grad()
def test_is_the_published_model(cuda, tmp_path):
    weights = published(cuda)
    torch.save(weights, tmp_path / "model.pt")
    model = zoo.create_model("xlstm1_nano", **OPTIONS, checkpoint_path=tmp_path / "model.pt").double().eval()
    assert to_zoo(weights).keys() == model.state_dict().keys()
    tokens = torch.randint(VOCAB, (2, 23))
    expected = torch.stack([logits_of(row, weights, cuda) for row in tokens]).float()
    torch.testing.assert_close(model(tokens).float(), expected, atol=1e-5, rtol=1e-5)
    state = model.init_state(2)
    steps = [model(part, state) for part in tokens.split([9, 1, 1, 1, 11], dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1).float(), expected, atol=1e-5, rtol=1e-5)


def test_recurrent_weights_do_not_decay():
    model = zoo.create_model("xlstm1_nano", device="meta")
    assert model.no_weight_decay() == {"blocks.1.mixer.R"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slstm_layers": (3,)}, r"slstm_layers must be blocks in \[0, depth = 3\)"),
        ({"inner_dim": 90}, "num_heads and block_size must divide inner_dim"),
        ({"num_heads": 5}, "num_heads and block_size must divide inner_dim"),
    ],
)
def test_configurations_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("xlstm1_nano", **options)
