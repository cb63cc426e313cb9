"""Doors to tools that people already use; each is imported by its name, and none by ``import zoo``."""
