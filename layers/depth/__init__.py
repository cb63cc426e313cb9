"""Depth that differs from token to token."""

from zoo.layers.depth.mod import Route, TokenRouter, top_share

__all__ = ["Route", "TokenRouter", "top_share"]
