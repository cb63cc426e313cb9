"""Prompts and masks as SAM knows them: an encoder of points, boxes and masks, and the decoder of masks.

Papers: Kirillov et al., "Segment Anything", arXiv 2304.02643, and Ravi et al., "SAM 2", arXiv 2408.00714; parameter
names are those of the published files.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.cross import CrossAttention
from zoo.layers.conv import LayerNorm2d

EPS = 1e-6  # of the norms of maps
PADDING, BACKGROUND, OBJECT, FIRST_CORNER, LAST_CORNER = -1, 0, 1, 2, 3  # labels of points


class Prompt(NamedTuple):
    """What says which object is meant; coordinates are pixels (x, y) of the picture that the model reads.

    points: (B, P, 2). labels: (B, P) integers, 1 on the object and 0 beside it, -1 for a point that is none. boxes:
    (B, 4), left, top, right and bottom. mask: (B, S, S), true on the object, instead of the others.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None


def check_prompt(prompt: Prompt, rows: int, size: int) -> None:
    """Raise a ValueError for what names no object in ``rows`` pictures of ``size`` pixels a side. What numbers say is
    not looked at while a model is compiled."""
    points, labels, boxes, mask = prompt
    if mask is not None and (points is not None or boxes is not None):
        raise ValueError("a prompt is a mask or points and boxes, got both: leave one out")
    if (points is None) != (labels is None):
        raise ValueError("points need labels, 1 on the object and 0 beside it, and labels points: got one of them")
    count = points.shape[1] if points is not None and points.dim() == 3 else 1
    shapes = (rows, count, 2), (rows, count), (rows, 4), (rows, size, size)
    for name, part, shape in zip(Prompt._fields, prompt, shapes, strict=True):
        if part is not None and tuple(part.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
    if torch.compiler.is_compiling() or any(part is not None and part.is_meta for part in prompt):
        return
    if points is not None and not ((points >= 0) & (points < size)).all():
        raise ValueError(f"points must be in the picture, in [0, {size}) of its pixels, got {points.tolist()}")
    if boxes is not None and not ((boxes >= 0) & (boxes <= size)).all():  # a box may end where the picture ends
        raise ValueError(f"boxes must be in the picture, in [0, {size}] of its pixels, got {boxes.tolist()}")
    if labels is not None and not ((labels >= PADDING) & (labels <= LAST_CORNER)).all():
        raise ValueError(f"labels must be -1 (none), 0 (beside), 1 (on it), 2 or 3 (corners), got {labels.tolist()}")
    if boxes is not None and not (boxes[:, 2:] > boxes[:, :2]).all():
        raise ValueError(
            f"boxes must be left, top, right, bottom with right > left and bottom > top, got {boxes.tolist()}"
        )


class Decoded(NamedTuple):
    """masks: (B, 1 + K, 4h, 4w) logits, of a whole and K parts that it may be. ious: (B, 1 + K), how well each fits.
    tokens: (B, 1 + K, dim). score: (B,), the logit of the object being seen."""

    masks: Tensor
    ious: Tensor
    tokens: Tensor
    score: Tensor


class Rows(nn.Module):
    """Learned vectors."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim))

    def forward(self) -> Tensor:
        """(count, dim)."""
        return self.weight


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; ``layers`` of the published files.

    Args:
        dims: of the input, what is between, and the output.
    """

    def __init__(self, *dims: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dims[0]) -> (..., dims[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class RandomFrequencies(nn.Module):
    r"""Places in the unit square as sines and cosines of random directions, :math:`2 \pi (2 p - 1) G`.

    Paper: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", arXiv 2006.10739.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, places: Tensor) -> Tensor:
        """places (..., 2) -> (..., dim), in the dtype of the matrix."""
        matrix = self.positional_encoding_gaussian_matrix
        wide = compute_dtype(matrix)
        angles = 2 * math.pi * ((2 * places.to(wide) - 1) @ matrix.to(wide))
        return torch.cat([angles.sin(), angles.cos()], -1).to(matrix.dtype)


class PromptEncoder(nn.Module):
    """Points and corners of boxes as tokens, a mask as a map; and the places of the picture's map.

    Args:
        dim: of tokens and map.
        img_size: side of the picture.
        grid: side of its map.
        mask_dim: channels between mask and map.
    """

    def __init__(self, dim: int, img_size: int, grid: int, mask_dim: int = 16):
        super().__init__()
        self.img_size, self.grid = img_size, grid
        self.pe_layer = RandomFrequencies(dim)
        self.point_embeddings = nn.ModuleList(Rows(1, dim) for _ in range(4))
        self.not_a_point_embed, self.no_mask_embed = (Rows(1, dim) for _ in range(2))
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_dim // 4, 2, stride=2), LayerNorm2d(mask_dim // 4, EPS), nn.GELU(),
            nn.Conv2d(mask_dim // 4, mask_dim, 2, stride=2), LayerNorm2d(mask_dim, EPS), nn.GELU(),
            nn.Conv2d(mask_dim, dim, 1),
        )  # fmt: skip

    def tokens(self, points: Tensor, labels: Tensor) -> Tensor:
        """points (B, P, 2) in pixels and labels (B, P) -> (B, P + 1, dim): what they are, and a point that is none."""
        points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PADDING)
        places = self.pe_layer((points + 0.5) / self.img_size)
        kinds = torch.cat([kind() for kind in self.point_embeddings])
        known = places + F.embedding(labels.clamp_min(0), kinds)
        return torch.where((labels == PADDING)[..., None], self.not_a_point_embed(), known)

    def map_of(self, mask: Tensor | None, rows: int) -> Tensor:
        """mask (B, 1, 4 grid, 4 grid) -> (B, dim, grid, grid); where there is none, the same everywhere."""
        if mask is not None:
            return self.mask_downscaling(mask)
        return self.no_mask_embed()[:, :, None, None].expand(rows, -1, self.grid, self.grid)

    def places(self) -> Tensor:
        """(grid^2, dim), row by row: the middles of the patches."""
        side = (
            torch.arange(self.grid, device=self.pe_layer.positional_encoding_gaussian_matrix.device) + 0.5
        ) / self.grid
        rows, columns = torch.meshgrid(side, side, indexing="ij")
        return self.pe_layer(torch.stack([columns, rows], -1).flatten(0, 1))


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to the picture, an MLP, and the picture to the tokens; norms follow each sum.

    Args:
        first: the tokens are their own places, and what they attend to replaces them.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = CrossAttention(dim, num_heads)
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = (
            CrossAttention(dim, num_heads, dim // 2) for _ in range(2)
        )
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.mlp = Perceptron(dim, mlp_dim, dim)

    def forward(self, tokens: Tensor, picture: Tensor, own: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, P, dim) with places ``own``, picture (B, N, dim) with ``places`` -> both."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + own
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + own, picture + places, picture))
        tokens = self.norm3(tokens + self.mlp(tokens))
        picture = self.norm4(picture + self.cross_attn_image_to_token(picture + places, tokens + own, tokens))
        return tokens, picture


class TwoWayTransformer(nn.Module):
    """Blocks, and the tokens to the picture once more."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, index == 0) for index in range(depth))
        self.final_attn_token_to_image = CrossAttention(dim, num_heads, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, picture: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, P, dim), picture (B, N, dim), its places (N, dim) -> both."""
        own = tokens
        for layer in self.layers:
            tokens, picture = layer(tokens, picture, own, places)
        found = self.final_attn_token_to_image(tokens + own, picture + places, picture)
        return self.norm_final_attn(tokens + found), picture


class MaskDecoder(nn.Module):
    """A map and a prompt to masks, each the product of a token's vector with the map at four times the resolution.

    Args:
        dim, depth, num_heads, mlp_dim: of the transformer.
        num_masks: parts K that a prompt may mean, besides the whole.
        iou_dim: hidden units of the head that says how well a mask fits.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, num_masks: int, iou_dim: int):
        super().__init__()
        self.transformer = TwoWayTransformer(dim, depth, num_heads, mlp_dim)
        self.obj_score_token, self.iou_token, self.mask_tokens = Rows(1, dim), Rows(1, dim), Rows(1 + num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2), LayerNorm2d(dim // 4, EPS), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(dim, dim, dim, dim // 8) for _ in range(1 + num_masks)
        )
        self.iou_prediction_head = Perceptron(dim, iou_dim, iou_dim, 1 + num_masks)
        self.pred_obj_score_head = Perceptron(dim, dim, dim, 1)
        with torch.no_grad():
            self.pred_obj_score_head.layers[-1].bias.fill_(1.0)  # pyright: ignore  # seen, until it has learnt what is not

    def forward(self, features: Tensor, places: Tensor, prompt: Tensor, dense: Tensor) -> Decoded:
        """features and dense (B, dim, h, w), places (h w, dim), prompt (B, P, dim)."""
        own = torch.cat([self.obj_score_token(), self.iou_token(), self.mask_tokens()])
        tokens = torch.cat([own.expand(len(features), -1, -1), prompt], 1)
        tokens, picture = self.transformer(tokens, (features + dense).flatten(2).mT, places)
        fine = self.output_upscaling(picture.mT.unflatten(2, features.shape[2:]))
        masked = tokens[:, 2 : 2 + len(self.output_hypernetworks_mlps)]
        vectors = [mlp(masked[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = (torch.stack(vectors, 1) @ fine.flatten(2)).unflatten(2, fine.shape[2:])
        ious = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        return Decoded(masks, ious, masked, self.pred_obj_score_head(tokens[:, 0]).squeeze(1))
