"""EfficientTAM: an object that a point, a box or a mask names, followed through a video.

Paper: Xiong et al., "Efficient Track Anything", arXiv 2411.18933, with the sizes of the authors' code
(yformer/EfficientTAM); what it does with prompts and memories is SAM 2's, arXiv 2408.00714.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.registry import Paper, register_model
from zoo.video.memory import MemoryAttention, MemoryEncoder, TrackState, sine_positions
from zoo.video.prompts import (
    FIRST_CORNER,
    LAST_CORNER,
    PADDING,
    MaskDecoder,
    Perceptron,
    Prompt,
    PromptEncoder,
    check_prompt,
)
from zoo.video.trunk import ImageEncoder

MISSING = -1024.0  # logit of every pixel where the object is not seen
SURE = 10.0  # logit of a pixel of a given mask, and of the memory of one


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientTAMConfig:
    """Options of EfficientTAM."""

    num_frames: int = 8
    """Frames of a clip that is counted or timed; clips may have any length."""
    img_size: int = 1024
    """Side of the pictures, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels, a power of 2."""
    in_chans: int = 3
    """Channels of the pictures."""
    dim: int
    """Width of the image encoder."""
    depth: int = 12
    """Blocks of it."""
    num_heads: int
    """Heads of its attention."""
    mlp_ratio: float = 4.0
    """Hidden width of its MLPs over dim."""
    window: int = 14
    """Side of the windows that its attention sees, in patches."""
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks whose attention sees the whole picture."""
    position_grid: int = 14
    """Side of its table of positions, which is resized to the picture."""
    hidden_dim: int = 256
    """Width of everything after the image encoder."""
    memory_dim: int = 64
    """Channels of a remembered map; object pointers are read in parts of as many."""
    memory_depth: int = 4
    """Layers of memory attention."""
    memory_frames: int = 7
    """Maps that are read, that of a prompted frame among them."""
    pointers: int = 16
    """Object pointers that are read, that of a prompted frame among them."""
    pool: int = 1
    """Side of the cells in which several remembered maps are read: 1 for each place by itself, 2 for the paper's
    efficient memory attention."""
    decoder_depth: int = 2
    """Blocks of the mask decoder."""
    decoder_heads: int = 8
    """Heads of its attention."""
    mlp_dim: int = 2048
    """Hidden width of memory attention and mask decoder."""
    num_masks: int = 3
    """Masks that a prompt of at most one point may mean, of which the one that fits best is taken."""
    drop_rate: float = 0.1
    """Dropout of the memory attention."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel that pictures are normalised by."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel that pictures are normalised by."""

    def __post_init__(self):
        require_positive(self, "num_frames", "img_size", "patch_size", "in_chans", "dim", "depth", "num_heads",
                         "window", "position_grid", "hidden_dim", "memory_dim", "memory_depth", "memory_frames",
                         "pointers", "pool", "decoder_depth", "decoder_heads", "mlp_dim", "num_masks")  # fmt: skip
        require_ranges(self)
        if self.patch_size < 4 or self.patch_size & (self.patch_size - 1) or self.img_size % self.patch_size:
            raise ValueError(
                "patch_size must be a power of 2, 4 or more, that divides img_size, got "
                f"patch_size={self.patch_size}, img_size={self.img_size}"
            )
        if self.grid % self.pool:
            raise ValueError(f"pool must divide the {self.grid} patches of a side, got pool={self.pool}")
        if self.hidden_dim % self.memory_dim or self.hidden_dim % 8 or self.memory_dim % 4:
            raise ValueError(
                "hidden_dim must be a multiple of 8 and of memory_dim, and memory_dim one of 4, got "
                f"hidden_dim={self.hidden_dim}, memory_dim={self.memory_dim}"
            )
        if not all(0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks must be in [0, depth {self.depth}), got {self.global_blocks}")
        if not len(self.mean) == len(self.std) == self.in_chans:
            raise ValueError(f"mean and std must have in_chans {self.in_chans} numbers, got {self.mean}, {self.std}")

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.img_size // self.patch_size

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one clip: (num_frames, in_chans, img_size, img_size)."""
        return self.num_frames, self.in_chans, self.img_size, self.img_size


class Tracked(NamedTuple):
    """Of one frame. mask: (B, S, S) logits, MISSING everywhere where the object is not seen. score: (B,), the logit of
    its being seen. iou: (B,), how well the mask fits, as expected. masks: (B, K, 4h, 4w) logits of all that were
    considered, whether or not it is seen. ious: (B, K), theirs."""

    mask: Tensor
    score: Tensor
    iou: Tensor
    masks: Tensor
    ious: Tensor


class EfficientTAM(nn.Module):
    """Each frame's map, read beside what is remembered of others, to a mask; and map and mask to a new memory.

    Frames are pictures of ``config.mean`` and ``std``. A frame with a prompt is read by itself, any other beside the
    maps of all prompted frames and of the last ``memory_frames`` - 1 others, and beside the pointers of as many more.
    In training and evaluation it computes the same, dropout aside.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass.
        image_encoder, memory_attention, memory_encoder, sam_prompt_encoder, sam_mask_decoder: the parts.
    """

    def __init__(self, config: EfficientTAMConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.image_encoder = ImageEncoder(c)
        self.mask_downsample = nn.Conv2d(1, 1, c.patch_size // 4, stride=c.patch_size // 4)
        self.memory_attention = MemoryAttention(
            c.hidden_dim, c.memory_dim, c.memory_depth, c.mlp_dim, c.pool, c.drop_rate
        )
        self.memory_encoder = MemoryEncoder(c.hidden_dim, c.memory_dim, c.patch_size)
        self.sam_prompt_encoder = PromptEncoder(c.hidden_dim, c.img_size, c.grid)
        self.sam_mask_decoder = MaskDecoder(
            c.hidden_dim, c.decoder_depth, c.decoder_heads, c.mlp_dim, c.num_masks, c.hidden_dim
        )
        self.obj_ptr_proj = Perceptron(*[c.hidden_dim] * 4)
        self.maskmem_tpos_enc = _vectors(c.memory_frames, c.memory_dim)
        self.no_mem_embed, self.no_obj_ptr = _vectors(1, 1, c.hidden_dim), _vectors(1, c.hidden_dim)

    def forward(self, frames: Tensor, prompt: Prompt | None = None) -> Tensor:
        """Clips (B, T, in_chans, S, S) to logits (B, T, S, S) of the object that ``prompt`` names in the first frame;
        without one, of the object that the model finds there.

        Raises:
            ValueError: for clips of another shape or of no frame, or a prompt outside the picture.
        """
        return torch.stack([tracked.mask for tracked in self.track(frames, prompt)], 1)

    def track(self, frames: Tensor, prompt: Prompt | None = None) -> list[Tracked]:
        """As ``forward``, with all that is found in each frame. The maps of all frames are made at once: of a long
        video take ``step``."""
        self._check(frames, "clips", "(batch, frames, ", 5)
        features = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        state = self.init_state()
        return [self.follow(x, state, None if t else prompt) for t, x in enumerate(features.unbind(1))]

    def init_state(self) -> TrackState:
        """What is remembered before the first frame: nothing."""
        return TrackState(self.config.memory_frames, self.config.pointers)

    def step(self, frame: Tensor, state: TrackState, prompt: Prompt | None = None) -> Tracked:
        """The next frame (B, in_chans, S, S) of a video; ``state`` remembers it. Any frame may have a prompt."""
        self._check(frame, "frames", "(batch, ", 4)
        return self.follow(self.encode(frame), state, prompt)

    def normalised(self, pictures: Tensor) -> Tensor:
        """Pictures (..., in_chans, S, S) in [0, 1] as the model reads them."""
        mean, std = (pictures.new_tensor(part)[:, None, None] for part in (self.config.mean, self.config.std))
        return (pictures - mean) / std

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, in_chans, S, S) to maps (B, hidden_dim, h, w), which say nothing of an object."""
        return self.image_encoder(images, self.grad_checkpointing and self.training)

    def follow(self, features: Tensor, state: TrackState, prompt: Prompt | None = None) -> Tracked:
        """As ``step``, from the map of the frame."""
        prompt = prompt or Prompt()
        check_prompt(prompt, len(features), self.config.img_size)
        prompted = not state.time or any(part is not None for part in prompt)
        if prompt.mask is not None:
            tracked, pointer = self._given(features, prompt.mask)
        else:
            known = features + self.no_mem_embed.view(1, -1, 1, 1) if prompted else self._recall(features, state)
            tracked, pointer = self._segment(known, *self._points(prompt, features))
        remembered = SURE * (2 * tracked.mask.sigmoid() - 1)
        state.add(self.memory_encoder(features, remembered[:, None]), pointer, prompted)
        return tracked

    def no_weight_decay(self) -> set[str]:
        """Learned vectors and tables of positions."""
        of_prompts = {name for name, _ in self.named_parameters() if "_embed" in name and name.startswith("sam_")}
        tokens = {f"sam_mask_decoder.{name}.weight" for name in ("obj_score_token", "iou_token", "mask_tokens")}
        return {"image_encoder.trunk.pos_embed", "maskmem_tpos_enc", "no_mem_embed", "no_obj_ptr"} | of_prompts | tokens

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks of the image encoder and of memory attention instead of storing their activations."""
        self.grad_checkpointing = enable

    def _recall(self, features: Tensor, state: TrackState) -> Tensor:
        """The map, read beside what is remembered."""
        c = self.config
        maps, pointers = state.read()
        spatial = sine_positions((c.grid, c.grid), c.memory_dim, features)
        times = self.maskmem_tpos_enc  # a row a distance less one, the last of prompted frames
        places = [spatial + times[distance - 1] for distance, _ in maps]
        parts = torch.stack(pointers, 1).unflatten(2, (-1, c.memory_dim)).flatten(1, 2)  # (B, pointers * parts, m)
        memory = torch.cat([*(tokens for _, tokens in maps), parts], 1)
        where = torch.cat([*places, parts.new_zeros(parts.shape[1:])])
        return self.memory_attention(features, memory, where, len(maps), self.grad_checkpointing and self.training)

    def _points(self, prompt: Prompt, features: Tensor) -> tuple[Tensor, Tensor]:
        """Points and labels of a prompt, the corners of a box first; a point that is none where it has neither."""
        rows, device = len(features), features.device
        points, labels = [], []
        if prompt.boxes is not None:
            points.append(prompt.boxes.unflatten(1, (2, 2)).float())
            labels.append(torch.tensor([FIRST_CORNER, LAST_CORNER], device=device).expand(rows, 2))
        if prompt.points is not None and prompt.labels is not None:
            points.append(prompt.points.float())
            labels.append(prompt.labels.long())
        if not points:
            return torch.zeros(rows, 1, 2, device=device), torch.full((rows, 1), PADDING, device=device)
        return torch.cat(points, 1), torch.cat(labels, 1)

    def _segment(
        self, features: Tensor, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tracked, Tensor]:
        """What a map and a prompt show, and the pointer to it."""
        c, prompts = self.config, self.sam_prompt_encoder
        several = points.shape[1] <= 1 and mask is None
        dense = prompts.map_of(mask, len(features))
        found = self.sam_mask_decoder(features, prompts.places(), prompts.tokens(points, labels), dense)
        masks, ious, tokens = (part[:, 1:] if several else part[:, :1] for part in found[:3])
        best = ious.argmax(1, keepdim=True)
        low = masks.take_along_dim(best[:, :, None, None], 1)
        seen = found.score > 0
        low = torch.where(seen[:, None, None, None], low, MISSING)
        whole = F.interpolate(low, (c.img_size, c.img_size), mode="bilinear")[:, 0]
        token = tokens.take_along_dim(best[:, :, None], 1)[:, 0]
        pointer = torch.where(seen[:, None], self.obj_ptr_proj(token), self.no_obj_ptr)
        return Tracked(whole, found.score, ious.take_along_dim(best, 1)[:, 0], masks, ious), pointer

    def _given(self, features: Tensor, mask: Tensor) -> tuple[Tracked, Tensor]:
        """A given mask as what was found; the decoder makes the pointer alone."""
        mask = mask.to(features.dtype)[:, None]
        _, pointer = self._segment(features, *self._points(Prompt(), features), self.mask_downsample(mask))
        seen = mask.flatten(1).any(1)
        pointer = torch.where(seen[:, None], pointer, self.no_obj_ptr)
        whole, score = SURE * (2 * mask - 1), SURE * (2 * seen.to(mask.dtype) - 1)
        wide = whole.to(torch.promote_types(whole.dtype, torch.float32))  # on the CPU, what antialiasing knows
        low = F.interpolate(wide, (4 * self.config.grid,) * 2, mode="bilinear", antialias=True).to(whole.dtype)
        return Tracked(whole[:, 0], score, torch.ones_like(score), low, torch.ones_like(score)[:, None]), pointer

    def _check(self, x: Tensor, what: str, named: str, dims: int) -> None:
        c = self.config
        if x.dim() != dims or x.shape[-3:] != c.input_shape[1:] or not x.is_floating_point() or 0 in x.shape[1:]:
            raise ValueError(
                f"{what} must be {named}{c.in_chans}, {c.img_size}, {c.img_size}) floats with a frame or more, got "
                f"{tuple(x.shape)} {x.dtype}"
            )


def _vectors(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


_register = partial(
    register_model, EfficientTAM, task="video-segmentation", family="efficienttam",
    paper=Paper("Efficient Track Anything", "2411.18933", 2024),
)  # fmt: skip


@_register()
def efficienttam_nano():
    return EfficientTAMConfig(
        num_frames=4, img_size=64, patch_size=8, dim=64, depth=2, num_heads=4, mlp_ratio=2.0, window=4,
        global_blocks=(1,), position_grid=8, hidden_dim=64, memory_dim=32, memory_depth=2, memory_frames=5,
        pointers=8, pool=2, decoder_heads=4, mlp_dim=96, num_masks=1, drop_rate=0.0,
    )  # fmt: skip


@_register()
def efficienttam_ti():
    return EfficientTAMConfig(dim=192, num_heads=3)


@_register()
def efficienttam_ti_1():
    return EfficientTAMConfig(dim=192, num_heads=3, pool=2)


@_register()
def efficienttam_s():
    return EfficientTAMConfig(dim=384, num_heads=6)


@_register()
def efficienttam_s_1():
    return EfficientTAMConfig(dim=384, num_heads=6, pool=2)
