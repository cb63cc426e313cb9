"""M2-Encoder: images and texts as vectors of one space, by ways of their own and blocks that both share.

Paper: Guo et al., "M2-Encoder: Advancing Bilingual Image-Text Understanding by Large-scale Efficient Pretraining",
arXiv 2401.15896, with the layers of the authors' code (alipay/Ant-Multi-Modal-Framework, ``prj/M2_Encoder``), a
multiway transformer of BEiT-3 (Wang et al., arXiv 2208.10442). What it does not use for these vectors is left out: the
shared blocks' second way, the mask token and the pooler. ``zoo.train.tasks.ContrastiveLearning`` trains it, in groups
of processes as the paper does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.language.ids import check_ids
from zoo.layers import PatchEmbed, recompute
from zoo.registry import Paper, register_model
from zoo.text.tokenizer import ByteTokenizer, Tokenizer

BYTES = 256  # tokens of a model that reads texts as they are


@dataclasses.dataclass(frozen=True, kw_only=True)
class M2EncoderConfig:
    """Options of M2-Encoder."""

    img_size: int = 224
    """Side of an image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_chans: int = 3
    """Image channels."""
    text_vocab_size: int = 115244
    """Tokens of texts."""
    pad_token: int
    """The token behind texts that are shorter than others, where no mask says what is padding."""
    max_length: int = 1022
    """Tokens of a text at most."""
    dim: int
    """Model width."""
    depth: int
    """Blocks of images alone, and as many of texts alone."""
    joint_depth: int = 3
    """Blocks after these, the same for both."""
    num_heads: int
    """Heads of the attention."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layers over dim."""
    out_dim: int
    """Numbers of a vector."""
    norm_eps: float = 1e-5
    """Added to the variance in the layer norms."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each channel that images are normalised by."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel that images are normalised by."""

    def __post_init__(self):
        require_positive(
            self, "img_size", "patch_size", "in_chans", "text_vocab_size", "pad_token", "max_length", "dim", "depth",
            "joint_depth", "num_heads", "out_dim",
        )  # fmt: skip
        require_ranges(self)
        if self.pad_token >= self.text_vocab_size:
            raise ValueError(f"pad_token must be one of the {self.text_vocab_size} tokens, got {self.pad_token}")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim: got dim {self.dim}, num_heads {self.num_heads}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.img_size, self.img_size


class SubNormBlock(nn.Module):
    r"""A block with norms before and inside its two layers.

    .. math::
        x' = x + W_o \, \mathrm{norm}(\mathrm{attention}(\mathrm{norm}(x))), \quad
        y = x' + W_2 \, \mathrm{norm}(\mathrm{gelu}(W_1 \, \mathrm{norm}(x')))

    Paper: Wang et al., "Foundation Transformers", arXiv 2210.06423.
    """

    def __init__(self, config: M2EncoderConfig):
        super().__init__()
        c, hidden = config, int(config.dim * config.mlp_ratio)
        norm = partial(nn.LayerNorm, eps=c.norm_eps)
        self.num_heads = c.num_heads
        self.norm1, self.inner_norm, self.norm2, self.hidden_norm = norm(c.dim), norm(c.dim), norm(c.dim), norm(hidden)
        self.qkv, self.out = nn.Linear(c.dim, 3 * c.dim), nn.Linear(c.dim, c.dim)
        self.fc1, self.fc2 = nn.Linear(c.dim, hidden), nn.Linear(hidden, c.dim)

    def enlarge(self, factor: float) -> None:
        """Multiply the matrices of values, outputs and hidden layers."""
        dim = self.out.in_features
        for weight in (self.qkv.weight[2 * dim :], self.out.weight, self.fc1.weight, self.fc2.weight):
            weight *= factor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), mask (B, 1, 1, T), False where nothing is to be seen -> (B, T, dim)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.out(self.inner_norm(y))
        return x + self.fc2(self.hidden_norm(F.gelu(self.fc1(self.norm2(x)))))


class M2Encoder(nn.Module):
    """Images, or texts, through their own blocks and norm, and then through those of both; the first token's vector.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass.
        patch_embed, class_token, image_positions, image_blocks, image_norm, image_head.
        embedding, text_positions, text_blocks, text_norm, text_head.
        joint_blocks, joint_norm.
    """

    def __init__(self, config: M2EncoderConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(c.img_size, c.patch_size, c.in_chans, c.dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.image_positions = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, c.dim))
        self.embedding = nn.Embedding(c.text_vocab_size, c.dim)
        self.text_positions = nn.Parameter(torch.zeros(1, c.max_length, c.dim))
        self.image_blocks, self.text_blocks, self.joint_blocks = (
            nn.ModuleList(SubNormBlock(c) for _ in range(count)) for count in (c.depth, c.depth, c.joint_depth)
        )
        self.image_norm, self.text_norm, self.joint_norm = (nn.LayerNorm(c.dim, c.norm_eps) for _ in range(3))
        self.image_head, self.text_head = (nn.Linear(c.dim, c.out_dim, bias=False) for _ in range(2))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Words by their width, positions normal of 0.02; what the blocks' norms stand inside of is larger, the more
        blocks there are, as in the paper of these."""
        nn.init.normal_(self.embedding.weight, std=self.config.dim**-0.5)
        for table in (self.class_token, self.image_positions, self.text_positions):
            nn.init.normal_(table, std=0.02)
        for blocks in (self.image_blocks, self.text_blocks, self.joint_blocks):
            for block in blocks:
                cast(SubNormBlock, block).enlarge(math.sqrt(math.log(2 * len(blocks))))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), or texts (B, T) int64 -> vectors (B, out_dim), not normalised.

        Args:
            x: images are normalised, texts begin with the token that is read.
            mask: (B, T) of texts, False at padding; where x is not ``pad_token`` when None.

        Raises:
            ValueError: for images of another shape, or texts that are empty, too long or of other tokens.
        """
        return self.encode_images(x) if x.is_floating_point() else self.encode_texts(x, mask)

    def encode_images(self, images: Tensor) -> Tensor:
        """See ``forward``."""
        c = self.config
        fits = images.dim() == 4 and tuple(images.shape[1:]) == (c.in_chans, *c.image_shape)
        if not fits or not images.is_floating_point():
            raise ValueError(
                f"images must be floating point of shape (batch, {c.in_chans}, {c.img_size}, {c.img_size}), got "
                f"{tuple(images.shape)} {images.dtype}"
            )
        x = self.patch_embed(images)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.image_positions
        x = self.image_norm(self._run(self.image_blocks, x))
        return self.image_head(self.joint_norm(self._run(self.joint_blocks, x))[:, 0])

    def encode_texts(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """See ``forward``."""
        c = self.config
        if tokens.dim() != 2 or not 1 <= tokens.shape[1] <= c.max_length:
            raise ValueError(f"texts must be (batch, 1 to {c.max_length} tokens), got {tuple(tokens.shape)}")
        check_ids("texts", tokens, 0, c.text_vocab_size)
        real = tokens != c.pad_token if mask is None else mask.bool()
        if not torch.compiler.is_compiling() and tokens.device.type != "meta" and not bool(real[:, :1].all()):
            raise ValueError(f"every text must begin with a token, and one begins with padding ({c.pad_token})")
        seen = real[:, None, None]
        x = (self.embedding(tokens) + self.text_positions[:, : tokens.shape[1]]) * real[..., None]
        x = self.text_norm(self._run(self.text_blocks, x, seen)) * real[..., None]
        return self.text_head(self.joint_norm(self._run(self.joint_blocks, x, seen))[:, 0])

    def similarity(self, images: Tensor, texts: Tensor | Sequence[str], tokenizer: Tokenizer | None = None) -> Tensor:
        """Cosine of each image with each text, (images, texts).

        Args:
            images: as of ``forward``.
            texts: tokens as of ``forward``, or texts themselves.
            tokenizer: of texts; None for a model of bytes.

        Raises:
            ValueError: as of ``forward`` and ``tokens_of``.
        """
        mask = None
        if not isinstance(texts, Tensor):
            texts, mask = self.tokens_of(texts, tokenizer)
        seen, read = self.encode_images(images), self.encode_texts(texts, mask)
        return F.normalize(seen.float(), dim=1) @ F.normalize(read.float(), dim=1).mT

    def tokens_of(self, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> tuple[Tensor, Tensor]:
        """Texts as the model reads them, tokens (B, T) int64, and a mask (B, T), False at padding.

        Args:
            texts: one or more.
            tokenizer: ``zoo.load_tokenizer`` of what the model was trained with; None for a model of bytes.

        Raises:
            ValueError: without a tokenizer that the model needs, for a single text, or for none.
        """
        c = self.config
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be a list of texts, or tokens (batch, length) int64, got {texts!r}")
        if tokenizer is None and c.text_vocab_size != BYTES:
            raise ValueError(
                f"a model of {c.text_vocab_size:,} tokens reads texts by its tokenizer: give "
                "tokenizer=zoo.load_tokenizer(FOLDER) of what it was trained with, or tokens (batch, length) int64"
            )
        ids = [(tokenizer or ByteTokenizer()).encode(text) for text in texts]
        longest = max(map(len, ids))
        rows = torch.tensor([row + [c.pad_token] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        device = self.class_token.device
        return rows.to(device), mask.to(device)

    def no_weight_decay(self) -> set[str]:
        """Tables of positions, and the class token."""
        return {"class_token", "image_positions", "text_positions"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _run(self, blocks: nn.ModuleList, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in blocks:
            x = recompute(block, x, mask) if self.grad_checkpointing and self.training else block(x, mask)
        return x


_register = partial(
    register_model, M2Encoder, task="image-text-retrieval", family="m2_encoder",
    paper=Paper(
        "M2-Encoder: Advancing Bilingual Image-Text Understanding by Large-scale Efficient Pretraining", "2401.15896",
        2024,
    ),
)  # fmt: skip
_LAST = 115243  # our choice: in the authors' texts what ends and what pads is the same token, so they give masks


@_register()
def m2_encoder_nano():
    return M2EncoderConfig(
        img_size=24, patch_size=4, in_chans=1, text_vocab_size=256, pad_token=255, max_length=64, dim=64, depth=3,
        joint_depth=1, num_heads=4, mlp_ratio=3.0, out_dim=64, mean=(0.13,), std=(0.19,),
    )  # fmt: skip


@_register()
def m2_encoder_0_4b():
    return M2EncoderConfig(pad_token=_LAST, dim=768, depth=9, num_heads=12, out_dim=768)


@_register()
def m2_encoder_1b():
    return M2EncoderConfig(pad_token=_LAST, dim=1024, depth=21, num_heads=16, out_dim=1024)


@_register()
def m2_encoder_10b():
    return M2EncoderConfig(pad_token=_LAST, dim=4096, depth=21, num_heads=32, out_dim=1024)
