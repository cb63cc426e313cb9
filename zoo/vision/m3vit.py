"""M³ViT: a vision transformer for several tasks, whose tokens visit the experts that the wanted task chooses.

Paper: Liang et al., "M³ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning with
Model-Accelerator Co-design", arXiv 2210.14793. Sizes are those of the authors' configurations (VITA-Group/M3ViT):
``m3vit_small`` and ``m3vit_base`` for NYUD-v2, with the 16 narrow experts, of which 4 a token, of the command in their
README (their files say 2 of twice the width: ``top_k=2, moe_mlp_ratio=2``, which costs the same); ``m3vit_tiny`` for
Cityscapes at 128 x 256, the network that Edge-MoE (Sarkar et al., arXiv 2305.18691) accelerates.
``checkpoints/convert/m3vit.py`` reads the authors' weights; their auxiliary decoders (TAM), used in training alone, are
left out. Edge-MoE's order of computation is written out in ``zoo.layers.moe.expert_by_expert``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from zoo.config import require_positive
from zoo.layers.conv import DenseDecoder
from zoo.layers.moe import ConditionedGate, TaskEmbedding, TaskGates, TaskMoE
from zoo.layers.report import is_exporting
from zoo.registry import Paper, nearest, register_model
from zoo.vision.base import IMAGENET_MEAN, IMAGENET_STD
from zoo.vision.vit import ViT, ViTBlock, ViTConfig

CLASSIFICATION = "classification"


@dataclasses.dataclass(frozen=True, kw_only=True)
class M3ViTConfig(ViTConfig):
    """Options of M3ViT; ``mlp_ratio`` is that of the blocks without experts."""

    classification: bool = True
    """The ``num_classes`` are a task, named "classification", the first one."""
    label_tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    """Further tasks with an answer an image: name -> classes."""
    dense_tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    """Tasks with an answer a pixel: name -> channels."""
    decoder_dim: int = 256
    """Width of the decoders of the dense tasks."""
    num_experts: int = 16
    """Experts of a layer."""
    top_k: int = 4
    """Experts a token takes."""
    moe_mlp_ratio: float = 1.0
    """Hidden width of an expert over dim."""
    expert_every: int = 2
    """Of each group of so many blocks the last has experts."""
    task_dim: int | None = None
    """None for one router a task; otherwise one router reads, beside the token, an embedding of the task of this
    width."""
    noise_std: float = 0.0
    """Noise of the router's logits in training, times num_experts."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss."""
    position_std: float = 0.02
    """Spread of the positions and the class token at the start; the authors start from DeiT's weights, and without
    such a start wider positions learn faster."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "decoder_dim", "num_experts", "top_k", "expert_every", "task_dim")
        if self.expert_every > self.depth:
            raise ValueError(
                f"expert_every must be at most depth, or no block has experts: got {self.expert_every}, "
                f"depth {self.depth}"
            )
        if self.num_classes and not self.classification:
            raise ValueError(
                f"num_classes are those of the task 'classification': got {self.num_classes} without it; give "
                "classification=True, or num_classes=0"
            )
        if self.dynamic_img_size and self.dense_tasks:
            raise ValueError("dynamic_img_size is for answers an image: the decoders of dense_tasks have a fixed grid")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or not all(map(str.isidentifier, self.tasks)):
            raise ValueError(f"tasks must have distinct names that are identifiers, got {list(self.tasks)}")
        for name, outputs in (self.label_tasks | self.dense_tasks).items():
            if not isinstance(outputs, int) or outputs < 1:
                raise ValueError(f"a task has a positive number of outputs, got {outputs!r} for {name!r}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of their routers."""
        return (CLASSIFICATION,) * self.classification + (*self.label_tasks, *self.dense_tasks)


class M3ViTBlock(ViTBlock):
    """x + attention(norm(x)), then x + mlp(norm(x)), where the mlp is one of experts."""

    mlp: TaskMoE  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: M3ViTConfig, drop_path: float):
        super().__init__(config, drop_path)
        c = config
        several = TaskGates(c.dim, c.num_experts, len(c.tasks))
        router = several if c.task_dim is None else ConditionedGate(c.dim, c.num_experts, c.task_dim)
        self.mlp = TaskMoE(
            router, c.dim, int(c.dim * c.moe_mlp_ratio), c.num_experts, c.top_k, noise_std=c.noise_std,
            balance_weight=c.balance_weight,
        )  # fmt: skip
        self.mlp_drop = nn.Dropout(c.proj_drop_rate)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, N, dim) and what tells the router the task -> (B, N, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp_drop(self.mlp(self.norm2(x), task)))


class DenseBlock(ViTBlock):
    """A block without experts, the same for all tasks."""

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, N, dim) -> (B, N, dim)."""
        return super().forward(x)


class M3ViT(ViT):
    """A vision transformer with experts in every other block, and a head for each task.

    ``model(images, "depth")`` gives the output of one task and computes nothing that only others need: the experts that
    its router chooses, and its head. ``model(images)`` gives a dict of all outputs, one pass over the blocks for each,
    whose side losses and activity are summed; with a single task it gives that output itself. An answer an image is
    (B, classes), one a pixel (B, channels, H, W). Everything of timm's surface takes ``task`` too, and needs it where
    there are several.

    Attributes:
        head: of the task "classification". decoders: of the others, by name.
    """

    config: M3ViTConfig

    def __init__(self, config: M3ViTConfig):
        super().__init__(config)
        c, grid = config, self.patch_embed.grid_size
        self.task_embed = None if c.task_dim is None else TaskEmbedding(len(c.tasks), c.task_dim)
        self.decoders = nn.ModuleDict(
            {name: nn.Linear(c.dim, classes) for name, classes in c.label_tasks.items()}
            | {name: DenseDecoder(c.dim, c.decoder_dim, n, grid, c.patch_size) for name, n in c.dense_tasks.items()}
        )
        if not (c.classification or c.label_tasks):
            self.norm = self.fc_norm = nn.Identity()  # the decoders have norms of their own

    def build_block(self, index: int, drop_path: float) -> ViTBlock:
        """Experts in the last block of each group."""
        dense = (index + 1) % self.config.expert_every
        return (DenseBlock if dense else M3ViTBlock)(self.config, drop_path)

    def init_weights(self) -> None:
        """As the authors': truncated normal linear layers, positions and class token, zero biases; experts have their
        own rule."""
        super().init_weights()
        for table in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(table, std=self.config.position_std)
        for layer in self.experts:
            layer.init_weights()

    @property
    def experts(self) -> list[TaskMoE]:
        """The layers with experts, in order."""
        return [block.mlp for block in self.blocks if isinstance(block, M3ViTBlock)]

    def forward(self, x: Tensor, task: str | None = None) -> Tensor | dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images (B, C, H, W), floating point, to the output of ``task``; to all of them by name when there is none.

        Raises:
            ValueError: for an unknown task, or images of another shape or dtype.
        """
        if task is not None or len(self.config.tasks) == 1:
            return self.forward_head(self.forward_features(x, task), task=task)
        outputs: dict[str, Tensor] = {}
        published: list[list[dict[str, Tensor]]] = []
        for name in self.config.tasks:
            outputs[name] = self.forward_head(self.forward_features(x, name), task=name)
            published.append([part for layer in self.experts for part in (layer.activity, layer.auxiliary_losses)])
        if not is_exporting():
            for *earlier, last in zip(*published, strict=True):
                last.update({key: sum((part[key] for part in earlier), value) for key, value in last.items()})
        return outputs

    def forward_features(self, x: Tensor, task: str | None = None) -> Tensor:
        """Images (B, C, H, W) to the tokens (B, N, dim) that the task's head takes.

        Raises:
            ValueError: as ``forward``, and for no task where there are several.
        """
        self._check(x)
        condition = self.condition(task)
        x = self.forward_embed(x)
        for block in self.blocks:
            x = self._run(block, x, condition)
        return self.forward_norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False, task: str | None = None) -> Tensor:
        """Tokens (B, N, dim) to the output of the task; or the class token that enters a classifier, the patches
        (B, H W, dim) that enter a decoder."""
        name = self.task_name(task)
        if name == CLASSIFICATION:
            return super().forward_head(x, pre_logits)
        x = self.patch_tokens(x) if name in self.config.dense_tasks else super().forward_head(x, pre_logits=True)
        return x if pre_logits else self.decoders[name](x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        task: str | None = None,
        *,
        return_prefix_tokens: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Features of chosen blocks for the task, as in timm; see ``VisionModel``."""
        return super().forward_intermediates(
            x, indices, norm, stop_early, output_fmt, intermediates_only,
            return_prefix_tokens=return_prefix_tokens, block_args=(self.condition(task),),
        )  # fmt: skip

    def condition(self, task: str | None) -> int | Tensor:
        """What tells the routers the task: its number, or its embedding where one router serves all."""
        number = self.config.tasks.index(self.task_name(task))
        return number if self.task_embed is None else self.task_embed(number)

    def task_name(self, task: str | None) -> str:
        """The task itself, or the only one there is.

        Raises:
            ValueError: for an unknown task, or for none where there are several.
        """
        tasks = self.config.tasks
        if (task is None or isinstance(task, Proxy)) and len(tasks) == 1:
            return tasks[0]
        if task not in tasks:
            raise ValueError(f"task must be one of {list(tasks)}, got {task!r}{nearest(str(task), tasks)}")
        return task

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for the task "classification", none for 0; other tasks do not change.

        Raises:
            ValueError: for another pooling than the class token, or without that task.
        """
        if not self.config.classification and num_classes:
            raise ValueError(f"there is no task 'classification' to reset, only {list(self.config.tasks)}")
        super().reset_classifier(num_classes, global_pool)


_register = partial(
    register_model,
    M3ViT,
    family="m3vit",
    paper=Paper(
        "M³ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning with Model-Accelerator "
        "Co-design",
        "2210.14793",
        2022,
    ),
)
_DENSE = partial(M3ViTConfig, classification=False, num_classes=0, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=1.0)
_NYUD = partial(_DENSE, img_size=(480, 640), dense_tasks={"semseg": 40, "depth": 1})


@_register(task="image-classification")
def m3vit_nano():
    return M3ViTConfig(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, dim=64, depth=4, num_heads=4, decoder_dim=32,
        num_experts=4, top_k=2, moe_mlp_ratio=2.0, position_std=0.5, mean=(0.305,), std=(0.376,), crop_pct=1.0,
    )  # fmt: skip


@_register(task="multi-task")
def m3vit_tiny():
    return _DENSE(
        img_size=(128, 256), dim=192, num_heads=3, top_k=2, moe_mlp_ratio=2.0, dense_tasks={"semseg": 7, "depth": 1}
    )


@_register(task="multi-task")
def m3vit_small():
    return _NYUD(dim=384, num_heads=12)


@_register(task="multi-task")
def m3vit_base():
    return _NYUD(dim=768, num_heads=12)
