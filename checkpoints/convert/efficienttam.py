"""EfficientTAM checkpoints of the authors (yformer/EfficientTAM), in the layout of SAM 2's: a dict under "model"."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import replace

PAIRS = (
    ("image_encoder.neck.convs.0.", "image_encoder.neck."), (".mask_downsampler.encoder.", ".mask_downsampler."),
    (".fuser.layers.", ".fuser."),
)  # fmt: skip
TRUNK = ((".mlp.layers.0.", ".mlp.fc1."), (".mlp.layers.1.", ".mlp.fc2."))
DISTANCES = "maskmem_tpos_enc"
UNREAD = "no_mem_pos_enc"  # by any frame: the first one adds no_mem_embed to its map instead


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a tracker with a plain image encoder."""
    return {"image_encoder.trunk.patch_embed.proj.weight", "image_encoder.neck.convs.0.conv_1x1.weight"} <= set(
        state_dict
    ) and "image_encoder.trunk.blocks.0.attn.qkv.weight" in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names, without the vector that is never read; the table of distances, which has four axes there, as one."""
    found = {}
    for key, tensor in replace(state_dict, PAIRS).items():
        if key != UNREAD:
            (name,) = replace({key: tensor}, TRUNK) if key.startswith("image_encoder.trunk.") else (key,)
            found[name] = tensor.flatten(0, 2) if name == DISTANCES else tensor
    return found
