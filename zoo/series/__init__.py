"""Models of time series: one file a family."""

from zoo.series.files import draw_scores, read_series
from zoo.series.stack_vae import ChannelGraph, StackVAE, StackVAEConfig, edge_precision

__all__ = ["ChannelGraph", "StackVAE", "StackVAEConfig", "draw_scores", "edge_precision", "read_series"]
