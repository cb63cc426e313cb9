"""EfficientTAM's parts beside SAM 2's of transformers, with the same random weights, in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.video.memory import MemoryAttention, MemoryEncoder, sine_positions
from zoo.video.prompts import MaskDecoder, PromptEncoder

sam2 = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")
configs = pytest.importorskip("transformers.models.sam2_video.configuration_sam2_video")
DIM, SIDE, MASKS = 32, 4, 3  # SIDE patches of 16 pixels
PERCEPTRONS = ((r"\.layers\.0\.", ".proj_in."), (r"\.layers\.1\.", ".layers.0."), (r"\.layers\.2\.", ".proj_out."))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns queries and keys in float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def share(ours: nn.Module, theirs: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Random numbers in both, by patterns of our names and theirs."""
    state = {}
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    for key, tensor in ours.state_dict().items():
        for pattern, name in pairs:
            key = re.sub(pattern, name, key)
        state[key] = tensor
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(key.startswith("conv_s") for key in missing.missing_keys)
    for module in (ours, theirs):
        module.double().eval()


def config(**options: Any) -> Any:
    found = configs.Sam2VideoConfig(
        memory_attention_hidden_size=DIM, memory_attention_num_layers=2, memory_attention_feed_forward_hidden_size=40,
        memory_attention_rope_feat_sizes=[SIDE, SIDE], memory_encoder_hidden_size=DIM, memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=DIM, memory_fuser_embed_dim=DIM, memory_fuser_intermediate_dim=4 * DIM,
        **options,
    )  # fmt: skip
    found._attn_implementation = "sdpa"
    return found


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_memory_encoder() -> None:
    ours, theirs = MemoryEncoder(DIM, 8, 16), sam2.Sam2VideoMemoryEncoder(config())
    stages = [(rf"^mask_downsampler\.{3 * i}\.", f"mask_downsampler.layers.{i}.conv.") for i in range(4)]
    stages += [(rf"^mask_downsampler\.{3 * i + 1}\.", f"mask_downsampler.layers.{i}.layer_norm.") for i in range(4)]
    share(ours, theirs, [*stages, (r"^mask_downsampler\.12\.", "mask_downsampler.final_conv."),
                         ("^pix_feat_proj", "feature_projection"), (r"^fuser\.", "memory_fuser.layers."),
                         ("dwconv", "depthwise_conv"), (r"\.norm", ".layer_norm"), ("pwconv", "pointwise_conv"),
                         ("gamma", "scale"), ("^out_proj", "projection")])  # fmt: skip
    features, mask = torch.randn(2, DIM, SIDE, SIDE).double(), torch.randn(2, 1, 16 * SIDE, 16 * SIDE).double()
    found, places = theirs(features, mask)
    close(ours(features, mask), found.flatten(2).mT)
    close(sine_positions((SIDE, SIDE), 8, features), places[0].flatten(1).T)


def test_memory_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three maps and two pointers in parts; memories have 64 channels there."""
    ours, theirs = MemoryAttention(DIM, 64, 2, 40, 1, 0.1), sam2.Sam2VideoMemoryAttention(config())
    share(ours, theirs, [("norm", "layer_norm"), ("out_proj", "o_proj")])
    frequency = 1e4 ** -(torch.arange(0, DIM // 2, 2).double() / (DIM // 2))  # theirs are of float32

    def tables(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places[..., None] * frequency
        recomposed = theirs.rotary_emb.recomposition_frequencies
        return recomposed(angles.cos()), recomposed(angles.sin())

    monkeypatch.setattr(theirs.rotary_emb, "forward", tables)
    features, length = torch.randn(2, DIM, SIDE, SIDE).double(), 3 * SIDE**2 + 2
    memory, places = torch.randn(2, length, 64).double(), torch.randn(length, 64).double()
    found = theirs(
        features.flatten(2).permute(2, 0, 1), memory.transpose(0, 1),
        sine_positions((SIDE, SIDE), DIM, features)[:, None], places[:, None].expand(-1, 2, -1), 2,
    )  # fmt: skip
    close(ours(features, memory, places, 3).flatten(2).mT, found.transpose(0, 1).reshape(2, SIDE**2, DIM))


def test_prompt_encoder_and_mask_decoder() -> None:
    options = configs.Sam2VideoPromptEncoderConfig(hidden_size=DIM, image_size=16 * SIDE)
    ours, theirs = PromptEncoder(DIM, 16 * SIDE, SIDE), sam2.Sam2VideoPromptEncoder(options)
    layers = zip((0, 1, 3, 4, 6), ("conv1", "layer_norm1", "conv2", "layer_norm2", "conv3"), strict=True)
    theirs.point_embed = nn.ModuleList(nn.Embedding(1, DIM) for _ in range(4))
    share(ours, theirs, [(rf"^mask_downscaling\.{i}\.", f"mask_embed.{name}.") for i, name in layers] +
          [("^pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
           ("^point_embeddings", "point_embed")])  # fmt: skip
    theirs.point_embed = nn.Embedding.from_pretrained(torch.cat([row.weight for row in theirs.point_embed]))
    points, mask = 16 * SIDE * torch.rand(2, 4, 2).double(), torch.randn(2, 1, 4 * SIDE, 4 * SIDE).double()
    labels = torch.tensor([[2, 3, 1, 0], [1, 1, -1, 0]])
    sparse, dense = theirs(points[:, None], labels[:, None], None, mask)
    close(ours.tokens(points, labels), sparse[:, 0])
    close(ours.map_of(mask, 2), dense)
    _, nothing = theirs(points[:, None], labels[:, None], None, None)
    close(ours.map_of(None, 2), nothing)

    options = configs.Sam2VideoMaskDecoderConfig(
        hidden_size=DIM, mlp_dim=40, num_attention_heads=4, iou_head_hidden_dim=24,
        dynamic_multimask_via_stability=False,
    )  # fmt: skip
    options._attn_implementation = "sdpa"
    decoder, other = MaskDecoder(DIM, 2, 4, 40, MASKS, 24), sam2.Sam2VideoMaskDecoder(options)
    heads = [(rf"^({'|'.join(('output_hyper[^.]*[.][0-9]', 'iou_pred[^.]*', 'pred_obj[^.]*'))}){old}", rf"\1{new}")
             for old, new in PERCEPTRONS]  # fmt: skip
    upscaling = zip((0, 1, 3), ("upscale_conv1", "upscale_layer_norm", "upscale_conv2"), strict=True)
    upscaled = [(rf"^output_upscaling\.{i}", name) for i, name in upscaling]
    share(decoder, other, [*heads, (r"\.mlp\.layers\.0", ".mlp.proj_in"),
                           (r"\.mlp\.layers\.1", ".mlp.proj_out"),
                           ("norm", "layer_norm"), ("out_proj", "o_proj"), *upscaled])  # fmt: skip
    features, places = torch.randn(2, DIM, SIDE, SIDE).double(), ours.places()
    found = decoder(features, places, sparse[:, 0], dense)
    fine = [
        torch.zeros(2, DIM // 8, 4 * SIDE, 4 * SIDE).double(),
        torch.zeros(2, DIM // 4, 2 * SIDE, 2 * SIDE).double(),
    ]
    where = places.T.unflatten(1, (SIDE, SIDE)).expand(2, -1, -1, -1)
    for several, part in ((True, slice(1, None)), (False, slice(0, 1))):
        masks, ious, tokens, score = other(features, where, sparse, dense, several, fine)
        close(found.masks[:, part], masks[:, 0])
        close(found.ious[:, part], ious[:, 0])
        close(found.tokens[:, part], tokens[:, 0])
        close(found.score, score[:, 0, 0])
