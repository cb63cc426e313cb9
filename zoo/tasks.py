"""What models do, by name."""

TASKS = (
    "language", "text-classification", "image-classification", "image-generation", "segmentation", "multi-task",
    "sequence-classification", "sequence-regression", "image-tokenization", "image-diffusion", "anomaly-detection",
    "speech-enhancement", "video-segmentation", "world-model", "vision-language", "point-classification",
    "birds-eye-occupancy", "video-diffusion", "video-autoencoding", "image-text-retrieval",
)  # fmt: skip
