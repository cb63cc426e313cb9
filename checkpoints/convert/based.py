"""BASED checkpoints of the authors (HazyResearch), which transformers does not have.

Around the renaming, three fused tensors are taken apart: ``Wqkv`` holds queries, keys and values, and ``fc1`` of the
feed-forward layer the value half before the gate half. Whatever else a file holds (metrics, the unused decay of the
1.3B model) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_LAYER, _BLOCK = "transformer.layers.#.", "blocks.#."
_NAMES = [  # published, ours
    ("transformer.embeddings.word_embeddings.", "embedding."),
    ("transformer.ln_f.", "norm."),
    ("lm_head.", "head."),
    (_LAYER + "norm1.", _BLOCK + "norm."),
    (_LAYER + "norm2.", _BLOCK + "mlp_norm."),
    (_LAYER + "mixer.proj_q.", _BLOCK + "mixer.q_proj."),
    (_LAYER + "mixer.proj_k.", _BLOCK + "mixer.k_proj."),
    (_LAYER + "mixer.proj_v.", _BLOCK + "mixer.v_proj."),
    (_LAYER + "mixer.conv.conv.", _BLOCK + "mixer.conv."),
    (_LAYER + "mlp.fc2.", _BLOCK + "mlp.w2."),
    (_LAYER, _BLOCK),
]
_FUSED = {  # end of our key -> the parts, in order
    "mixer.Wqkv.weight": ("mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight"),
    "mlp.fc1.weight": ("mlp.w3.weight", "mlp.w1.weight"),
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published BASED language model."""
    return any(key.endswith(".mixer.proj_q.weight") for key in state_dict) and any(
        key.endswith("transformer.embeddings.word_embeddings.weight") for key in state_dict
    )


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names, with or without the prefix "model.", -> the zoo's."""
    bare = {key.removeprefix("model."): tensor for key, tensor in state_dict.items()}
    known = {
        key: tensor
        for key, tensor in bare.items()
        if key.startswith(("transformer.", "lm_head.")) and not key.startswith("transformer.decay.")
    }
    converted = {}
    for key, tensor in rename(known, _NAMES).items():
        fused = next((end for end in _FUSED if key.endswith(end)), None)
        if fused is None:
            converted[key] = tensor
        else:
            start, parts = key.removesuffix(fused), _FUSED[fused]
            converted |= {start + part: t for part, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return converted
