"""What timm's tools read from a model and set on it."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.limits import each_parameter
from zoo.loading import release

PREPARATION = ("interpolation", "crop_pct", "crop_mode", "mean", "std")


class TimmSurface(nn.Module):
    """Attributes and methods under timm's names, said by the configuration.

    TorchScript is refused: export by ``torch.export`` or ``zoo.export_onnx``, or compile by ``torch.compile``.
    """

    config: Any
    first_conv, classifier = "patch_embed.proj", "head"
    final_norm: str | None = "norm"
    fixed_input_size = True
    _source: Mapping[str, Any] = {}

    @abstractmethod
    def layer_list(self) -> tuple[str, nn.ModuleList]:
        """Attribute name and list of the blocks."""

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.config.in_chans

    @property
    def num_classes(self) -> int:
        """Classes of the present head, 0 for none."""
        return self.config.num_classes

    @property
    def global_pool(self) -> str | None:
        """How features become one vector an image; None where there is no choice."""
        return getattr(self.config, "global_pool", None)

    @property
    def pool_size(self) -> tuple[int, int] | None:
        """(height, width) of the last map at the configuration's image size; None where tokens are pooled."""
        return self.config.map_shape

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared for this model, for ``timm.data.resolve_data_config``, and where weights came from.

        What is assigned to it stays: the preparation in the configuration, the rest as far as that does not say it.
        """
        name = getattr(self, "config_name", type(self).__name__)
        return {**self._source, "architecture": name, **described(type(self), self.config)}

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: Mapping[str, Any]) -> None:
        self._source = dict(cfg)
        given = {key: cfg[key] for key in PREPARATION if cfg.get(key) is not None}
        self.config = dataclasses.replace(
            self.config, **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        )

    default_cfg = pretrained_cfg

    @property
    def _traits(self) -> dict[str, Any]:
        """The present input, where timm looks for it; what timm assigns here is what the configuration says."""
        c = self.config
        fixed = described(type(self), c)["fixed_input_size"]
        return {"img_size": c.image_shape, "fixed_input_size": fixed, "first_conv": self.first_conv}

    @_traits.setter
    def _traits(self, traits: Mapping[str, Any]) -> None:
        pass

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """The blocks that ``indices`` of ``forward_intermediates`` names, shallowest first.

        Raises:
            ValueError: for an index out of range.
        """
        depth = len(self.layer_list()[1])
        wanted = range(depth) if indices is None else indices
        if isinstance(wanted, int):
            wanted = range(depth - wanted, depth)
        taken = sorted({index + depth if index < 0 else index for index in wanted})
        if not taken or taken[0] < 0 or taken[-1] >= depth:
            raise ValueError(f"indices must name some of the {depth} blocks, got {indices}")
        return taken

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """Features of blocks as DINO's users ask for them: ``forward_intermediates`` by other names.

        Args:
            x: Images (B, C, H, W).
            n: The last so many blocks, or their indices.
            reshape: Maps (B, dim, H, W) instead of tokens (B, N, dim).
            return_prefix_tokens: Pairs with the class token (B, 1, dim) instead.
            norm: Apply the final norm.
        """
        return self.forward_intermediates(  # type: ignore[operator]
            x, n, norm, False, "NCHW" if reshape else "NLC", True, return_prefix_tokens=return_prefix_tokens
        )

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what ``forward_intermediates(x, indices)`` does not need, in place.

        Args:
            indices: As there.
            prune_norm: Drop the final norm.
            prune_head: Drop the classifier.

        Returns:
            The indices that are left, counted from the first block.

        Raises:
            ValueError: for an index out of range.
        """
        taken = self.feature_indices(indices)
        del self.layer_list()[1][taken[-1] + 1 :]
        if prune_norm and self.final_norm:
            setattr(self, self.final_norm, nn.Identity())
        if prune_head:
            self.reset_classifier(0)  # type: ignore[operator]
        return taken

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Take images of another size from now on, in place; tables of positions are resized.

        Args:
            img_size: Side or (height, width) in pixels; None for no change.
            patch_size: There for timm's callers: patches keep their size.

        Raises:
            ValueError: for another patch_size, or a size that patches do not cover or other weights depend on.
        """
        if patch_size not in (None, getattr(self.config, "patch_size", None)):
            raise ValueError(f"patches keep their size: create the model with patch_size={patch_size}")
        if img_size is None:
            return
        with each_parameter(release):
            resized: Any = type(self)(dataclasses.replace(self.config, img_size=img_size))
        tensors, expected = resized.adapt_tensors(self.state_dict(), self.config), resized.state_dict()
        if fixed := [name for name, t in tensors.items() if name in expected and t.shape != expected[name].shape]:
            raise ValueError(f"{type(self).__name__} has weights for images of its own size alone: {', '.join(fixed)}")
        others = dict(resized.named_modules())
        for prefix, module in self.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                tensor = tensors[f"{prefix}.{name}" if prefix else name]
                if tensor.shape != parameter.shape:
                    setattr(module, name, nn.Parameter(tensor.detach(), parameter.requires_grad))
            for name in getattr(module, "of_image_size", ()):
                value = getattr(others[prefix], name)
                setattr(module, name, value.to(next(self.parameters()).device) if isinstance(value, Tensor) else value)
        self.config = resized.config

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no TorchScript form: use torch.export.export, zoo.export_onnx or torch.compile"
        )


def described(model_class: Any, config: Any) -> dict[str, Any]:
    """What timm calls a model's pretrained_cfg, of a model that need not be built."""
    return {
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, *config.image_shape),
        "fixed_input_size": model_class.fixed_input_size and not getattr(config, "dynamic_img_size", False),
        **{key: getattr(config, key) for key in PREPARATION},
        "label_names": (config.label_names or None) if len(config.label_names) == config.num_classes else None,
        "pool_size": config.map_shape,
        "first_conv": model_class.first_conv,
        "classifier": model_class.classifier,
    }
