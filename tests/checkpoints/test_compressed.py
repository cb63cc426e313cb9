"""Weights that are no plain tensors, such as the subclasses that torchao's ``quantize_`` leaves, are saved as plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.checkpoints import read_state_dict, write_folder
from zoo.checkpoints.blocks import digest
from zoo.offload.files import spilled


class Int8Tensor(Tensor):
    """int8 codes and a scale a row, without a storage of its own; every operation dequantises."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor):
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # pyright: ignore

    def __init__(self, codes: Tensor, scale: Tensor):
        self.codes, self.scale = codes, scale

    def __repr__(self) -> str:
        return f"Int8Tensor{tuple(self.shape)}"

    def dequantize(self) -> Tensor:
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        return func(*(a.dequantize() if isinstance(a, cls) else a for a in args), **(kwargs or {}))


class Opaque(Int8Tensor):
    """The same without a way back."""

    dequantize = Tensor.dequantize  # pyright: ignore[reportAssignmentType]


def compressed(name: str, kind: Any) -> Any:
    model: Any = zoo.create_model(name).eval()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and module is not model.head:
            scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
            codes = (module.weight.detach() / scale).round().to(torch.int8)
            module.weight = nn.Parameter(kind(codes, scale), requires_grad=False)
    return model


def test_compressed_weights_are_saved_as_what_they_stand_for(tmp_path):
    model, tokens = compressed("transformer_nano", Int8Tensor), torch.randint(0, 256, (1, 9))
    plain = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
    assert all(type(parameter) is nn.Parameter for parameter in plain.parameters())
    torch.testing.assert_close(plain(tokens), model(tokens))


def test_what_cannot_be_made_plain_is_named(tmp_path):
    model = compressed("transformer_nano", Opaque)
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer\.q_proj\.weight is a Opaque, a file holds plain tensors"):
        zoo.save_model(model, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_what_torch_conjugates_or_negates_as_it_is_read_is_kept_as_the_result(tmp_path):
    """A file holds bytes, which are those of the tensor beneath."""
    z = torch.randn(4, 6, dtype=torch.complex64)
    lazy = {"conjugated": z.conj(), "negated": z.conj().imag, "transposed": z.mH, "both": torch._neg_view(z.conj())}
    result = {name: tensor.resolve_conj().resolve_neg().clone() for name, tensor in lazy.items()}
    read = read_state_dict(write_folder(tmp_path, lazy, {"model_type": "none"}, "card"))
    spilt = spilled(lazy.items())
    for name, tensor in result.items():
        assert torch.equal(read[name], tensor), name
        assert torch.equal(spilt[name].read(torch.empty(spilt[name].room, dtype=torch.uint8)), tensor), name
    assert digest(lazy) == digest(result) != digest({**result, "conjugated": z})
