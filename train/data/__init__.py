"""Data modules: digits, text, images and generated tasks, all on one deterministic, resumable loader."""

from zoo.train.data.arrays import ArraysDataModule
from zoo.train.data.base import DataModule
from zoo.train.data.bigram import bigram_bits_per_byte
from zoo.train.data.cameras import CamerasDataModule
from zoo.train.data.clips import ClipsDataModule
from zoo.train.data.clouds import CloudsDataModule
from zoo.train.data.demonstrations import Demonstrations
from zoo.train.data.digit_stream import DigitStreamDataModule, TurnedDigitsDataModule
from zoo.train.data.digit_views import DigitConceptDataModule, DigitViewsDataModule
from zoo.train.data.digits import DigitLevelsDataModule, DigitsDataModule, DigitTokensDataModule
from zoo.train.data.environments import EnvironmentDataModule
from zoo.train.data.figures import FiguresDataModule, FigureTokensDataModule, MovingFiguresDataModule
from zoo.train.data.grown import GrownSourceDataModule
from zoo.train.data.histogram import histogram_bits_per_dim
from zoo.train.data.images import ImageDataModule
from zoo.train.data.listops import ListOps
from zoo.train.data.loader import Batch, BatchLoader, Source
from zoo.train.data.microphones import MicrophonesDataModule
from zoo.train.data.pictures import CaptionedPicturesDataModule, PicturesDataModule
from zoo.train.data.rewarded import PreferencesDataModule, RewardedTask, SortLetters
from zoo.train.data.scenes import ScenesDataModule
from zoo.train.data.series import SeriesDataModule
from zoo.train.data.sessions import KeyValues, Mixture, Passkeys, Session, VariableTracking
from zoo.train.data.shapes import ShapesDataModule
from zoo.train.data.spikes import SpikeSums
from zoo.train.data.synthetic import MQAR, InductionHeads, SelectiveCopying, SyntheticDataModule, SyntheticTask
from zoo.train.data.text import DocumentationDataModule, SourceCodeDataModule, TextDataModule, TextFilesDataModule
from zoo.train.data.volumes import EllipsoidsDataModule

__all__ = [
    "MQAR",
    "ArraysDataModule",
    "Batch",
    "BatchLoader",
    "CamerasDataModule",
    "CaptionedPicturesDataModule",
    "ClipsDataModule",
    "CloudsDataModule",
    "DataModule",
    "Demonstrations",
    "DigitConceptDataModule",
    "DigitLevelsDataModule",
    "DigitStreamDataModule",
    "DigitTokensDataModule",
    "DigitViewsDataModule",
    "DigitsDataModule",
    "DocumentationDataModule",
    "EllipsoidsDataModule",
    "EnvironmentDataModule",
    "FigureTokensDataModule",
    "FiguresDataModule",
    "GrownSourceDataModule",
    "ImageDataModule",
    "InductionHeads",
    "KeyValues",
    "ListOps",
    "MicrophonesDataModule",
    "Mixture",
    "MovingFiguresDataModule",
    "Passkeys",
    "PicturesDataModule",
    "PreferencesDataModule",
    "RewardedTask",
    "ScenesDataModule",
    "SelectiveCopying",
    "SeriesDataModule",
    "Session",
    "ShapesDataModule",
    "SortLetters",
    "Source",
    "SourceCodeDataModule",
    "SpikeSums",
    "SyntheticDataModule",
    "SyntheticTask",
    "TextDataModule",
    "TextFilesDataModule",
    "TurnedDigitsDataModule",
    "VariableTracking",
    "bigram_bits_per_byte",
    "histogram_bits_per_dim",
]
