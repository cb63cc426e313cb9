"""Vision models as transformers' image classifiers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from zoo.integrations.transformers.base import ZooModel
from zoo.layers.report import auxiliary_losses


class ZooForImageClassification(ZooModel):
    """An image classifier of the zoo, ``model``, with the surface of transformers' image classifiers."""

    task = "image-classification"
    main_input_name = "pixel_values"
    input_modalities = "image"

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Images (B, C, H, W) to logits (B, num_labels), and their mean cross-entropy where labels (B,) are given."""
        logits = self.model(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if loss is not None and self.training:
            loss = loss + sum(auxiliary_losses(self.model).values())
        return ImageClassifierOutput(loss=loss, logits=logits)
