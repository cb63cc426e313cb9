"""Models of video: one file a family."""

from zoo.video.efficienttam import EfficientTAM, EfficientTAMConfig, Tracked
from zoo.video.files import draw_strip, read_clip
from zoo.video.memory import TrackState
from zoo.video.prompts import Prompt

__all__ = ["EfficientTAM", "EfficientTAMConfig", "Prompt", "TrackState", "Tracked", "draw_strip", "read_clip"]
