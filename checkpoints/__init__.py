"""Checkpoints: plain functions over files, state dicts and configuration dicts."""

from zoo.checkpoints.io import fit_state_dict, read_config, read_state_dict
from zoo.checkpoints.write import write_folder

__all__ = ["fit_state_dict", "read_config", "read_state_dict", "write_folder"]
