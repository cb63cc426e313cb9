"""Tasks: what a model learns from a batch, how it is optimised and what is measured."""

from zoo.train.tasks.anomaly import AnomalyDetection
from zoo.train.tasks.base import Task
from zoo.train.tasks.classification import ImageClassification, SequenceClassification, TextClassification
from zoo.train.tasks.contrastive import ContrastiveLearning
from zoo.train.tasks.diffusion import ImageDiffusion
from zoo.train.tasks.draft_layer import DraftLayerTraining
from zoo.train.tasks.dual_input import DualInputClassification
from zoo.train.tasks.elastic import ElasticLanguageModeling
from zoo.train.tasks.enhancement import SpeechEnhancement
from zoo.train.tasks.generation import ImageGeneration
from zoo.train.tasks.koala import UNetDistillation
from zoo.train.tasks.language import LanguageModeling
from zoo.train.tasks.linearization import Linearization
from zoo.train.tasks.motion import MotionDiffusion
from zoo.train.tasks.multi_task import MultiTask
from zoo.train.tasks.occupancy import BirdsEyeOccupancy
from zoo.train.tasks.points import PointClassification
from zoo.train.tasks.preference import PreferenceOptimization
from zoo.train.tasks.regression import SequenceRegression
from zoo.train.tasks.reinforce import ReMax
from zoo.train.tasks.search import ArchitectureSearch
from zoo.train.tasks.segmentation import Segmentation
from zoo.train.tasks.tokenization import ImageTokenization
from zoo.train.tasks.tracking import VideoSegmentation
from zoo.train.tasks.vision_language import VisionLanguage
from zoo.train.tasks.vocabulary import VocabularyAdaptation
from zoo.train.tasks.world import WorldModeling

__all__ = [
    "AnomalyDetection",
    "ArchitectureSearch",
    "BirdsEyeOccupancy",
    "ContrastiveLearning",
    "DraftLayerTraining",
    "DualInputClassification",
    "ElasticLanguageModeling",
    "ImageClassification",
    "ImageDiffusion",
    "ImageGeneration",
    "ImageTokenization",
    "LanguageModeling",
    "Linearization",
    "MotionDiffusion",
    "MultiTask",
    "PointClassification",
    "PreferenceOptimization",
    "ReMax",
    "Segmentation",
    "SequenceClassification",
    "SequenceRegression",
    "SpeechEnhancement",
    "Task",
    "TextClassification",
    "UNetDistillation",
    "VideoSegmentation",
    "VisionLanguage",
    "VocabularyAdaptation",
    "WorldModeling",
]
