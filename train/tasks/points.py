"""Classification of clouds of points."""

from __future__ import annotations

from zoo.train.tasks.classification import ImageClassification


class PointClassification(ImageClassification):
    """Cross-entropy over classes; batches are `(points (B, N, C), targets)`, as of `ImageClassification` otherwise."""

    unit = "clouds"
