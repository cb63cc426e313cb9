"""LongConv over token sequences: sums written out, padding, directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from cases.long_conv import both_ways
from zoo.layers.conv import BidirectionalLongConv, ButterflyLongConv
from zoo.layers.sequence_block import SequenceNorm
from zoo.train.optim import parameter_groups


def settled(**options: Any) -> Any:
    """A nano in float64 and eval mode with statistics of its own."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("longconv_text_nano", dtype=torch.float64, **options)
    for module in model.modules():
        if isinstance(module, SequenceNorm):
            assert module.running_mean is not None and module.running_var is not None
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 25])
@pytest.mark.parametrize("lam", [0.0, 0.002])
def test_it_is_the_sum_over_past_and_future(length, lam):
    torch.manual_seed(0)
    conv = BidirectionalLongConv(5, 9, lam=lam).double()
    kernel = conv.kernel.sign() * (conv.kernel.abs() - lam).clamp(min=0)
    u = torch.randn(2, length, 5, dtype=torch.float64)
    close(conv(u), both_ways(u, kernel[:5], kernel[5:], conv.D))
    one_way = BidirectionalLongConv(5, 9, lam=lam, directions=1).double()
    one_way.load_state_dict({"kernel": conv.kernel[:5], "D": conv.D})
    close(one_way(u), both_ways(u, kernel[:5], 0 * kernel[5:], conv.D))


def test_the_logits_are_the_formulas():
    model, tokens = settled(depth=2, kernel_length=12, num_convs=3), torch.randint(0, 15, (2, 20))
    x = model.embedding(tokens)
    for block in model.blocks:
        u, mixer = block.before(x), block.mixer
        parts = [both_ways(u, *conv.taps().chunk(2), conv.D) for conv in mixer.convs]
        value, gate = mixer.output_linear(F.gelu(torch.cat(parts, dim=-1))).chunk(2, dim=-1)
        x = x + value * gate.sigmoid()
    close(model(tokens), model.head(model.norm(x).mean(1)))


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("pair", [True, False])
def test_padding_behind_changes_nothing(pair, prenorm):
    model = settled(pair=pair, prenorm=prenorm)
    tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
    padded = F.pad(tokens, (0, 13), value=-1)
    padded[1, ..., 20:] = 3
    close(model(padded)[[0, 2]], model(tokens)[[0, 2]])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_which_tokens_a_step_reads(bidirectional):
    model, tokens = settled(bidirectional=bidirectional, kernel_length=6, lam=0.0), torch.randint(0, 15, (1, 20))
    features = model.embedding(tokens).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.blocks[0](features)[0, 10].square().sum(), features)
    seen = range(5, 17) if bidirectional else range(5, 11)
    assert (gradient[0].abs().sum(-1) > 1e-9).nonzero().flatten().tolist() == list(seen)


def test_taps_have_a_rate_of_their_own_and_no_weight_decay():
    model = settled(kernel_lr=1e-4)
    *_, slow = parameter_groups(model, lr=1e-2, weight_decay=0.1)
    assert {id(p) for p in slow["params"]} == {id(p) for key, p in model.named_parameters() if key.endswith("kernel")}
    assert slow["lr"] == 1e-4 and slow["weight_decay"] == 0
    with pytest.raises(ValueError, match="kernel_init must be one of random, double_exp, got 'hippo'"):
        settled(kernel_init="hippo")


@pytest.mark.parametrize(("taps", "lengths"), [(1, [1]), (9, [1, 9, 23]), (40, [40, 70])])
def test_the_butterfly_starts_as_the_convolution(taps, lengths):
    torch.manual_seed(0)
    learned = ButterflyLongConv(5, taps, lam=0.0)
    plain = BidirectionalLongConv(5, taps, lam=0.0)
    plain.load_state_dict({key: learned.state_dict()[key] for key in ("kernel", "D")})
    for length in lengths:
        u = torch.randn(2, length, 5)
        torch.testing.assert_close(learned(u), plain(u))


def test_a_learned_butterfly_is_the_product_of_its_matrices():
    """Of one stage, 16 steps: the inverse transform of the two products."""
    learned = ButterflyLongConv(3, 6, lam=0.0).double()
    with torch.no_grad():
        for matrix in (learned.input_dft_16, learned.kernel_dft_16):
            matrix.add_(torch.randn_like(matrix))
    u = torch.randn(2, 10, 3, dtype=torch.float64)
    past, future = learned.taps().chunk(2)
    kernel = torch.cat([past, past.new_zeros(3, 4), future.flip(1)], dim=1).to(torch.complex128)
    of_input, of_kernel = (torch.view_as_complex(m) for m in (learned.input_dft_16, learned.kernel_dft_16))
    spectrum = (of_input[:, :10] @ u.to(torch.complex128)) * (of_kernel @ kernel.mT)
    close(learned(u), torch.fft.ifft(spectrum, dim=1).real[:, :10] + learned.D * u)


def test_the_butterfly_in_the_model():
    model = settled(butterfly=True, lam=0.0, kernel_length=20)
    tokens = torch.randint(0, 15, (3, 20))
    close(model(F.pad(tokens, (0, 13), value=-1)), model(tokens))
    model(tokens).square().sum().backward()
    assert all(p.grad.any() for key, p in model.named_parameters() if "dft" in key)
    with pytest.raises(ValueError, match="takes sequences up to 44, got 45"):
        model(torch.zeros(1, 45, dtype=torch.int64))
    with pytest.raises(ValueError, match="two directions, got 1"):
        settled(butterfly=True, bidirectional=False)
