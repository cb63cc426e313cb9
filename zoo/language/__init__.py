"""Language models: one file a family."""

from zoo.language import dense  # noqa: F401 - registers its models
from zoo.language.bamba import BambaConfig, BambaLanguageModel
from zoo.language.base import LanguageModel
from zoo.language.based import BasedConfig, BasedLanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.language.classifier import SequenceClassifier, SequenceConfig
from zoo.language.deepseek import DeepSeekConfig, DeepSeekLanguageModel
from zoo.language.deltanet import (
    DeltaNetConfig,
    DeltaNetLanguageModel,
    GatedDeltaNetConfig,
    GatedDeltaNetLanguageModel,
)
from zoo.language.falcon_h1 import FalconH1Config, FalconH1LanguageModel
from zoo.language.gla import GLAConfig, GLALanguageModel, RetNetConfig, RetNetLanguageModel
from zoo.language.gpt_oss import GptOssConfig, GptOssLanguageModel
from zoo.language.granite_hybrid import GraniteHybridConfig, GraniteHybridLanguageModel
from zoo.language.hamburger import HamburgerConfig, HamburgerLanguageModel
from zoo.language.hybrid import HybridConfig, HybridLanguageModel
from zoo.language.jamba import JambaConfig, JambaLanguageModel
from zoo.language.kimi_linear import KimiLinearConfig, KimiLinearLanguageModel
from zoo.language.lfm2 import LFM2Config, LFM2LanguageModel
from zoo.language.linformer import LinformerClassifier, LinformerConfig
from zoo.language.lizard import LizardConfig, LizardLanguageModel
from zoo.language.longconv import LongConvConfig, LongConvLanguageModel
from zoo.language.longconv_text import LongConvTextClassifier, LongConvTextConfig
from zoo.language.maelre import MAELREClassifier, MAELREConfig
from zoo.language.mamba import MambaConfig, MambaLanguageModel
from zoo.language.mamba2 import Mamba2Config, Mamba2LanguageModel
from zoo.language.memoryformer import MemoryFormerConfig, MemoryFormerLanguageModel
from zoo.language.minimax import MiniMaxConfig, MiniMaxLanguageModel
from zoo.language.mod import MoDConfig, MoDLanguageModel
from zoo.language.moe import MoEConfig, MoELanguageModel
from zoo.language.mohd import MoHDConfig, MoHDLanguageModel
from zoo.language.mole import MoLEConfig, MoLELanguageModel
from zoo.language.mor import MoRConfig, MoRLanguageModel
from zoo.language.nemotron_h import NemotronHConfig, NemotronHLanguageModel
from zoo.language.qwen3_next import Qwen3NextConfig, Qwen3NextLanguageModel
from zoo.language.recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaLanguageModel
from zoo.language.routing import RoutingConfig, RoutingLanguageModel
from zoo.language.rwkv7 import RWKV7Config, RWKV7LanguageModel
from zoo.language.s4 import S4Config, S4DConfig, S4DLanguageModel, S4LanguageModel
from zoo.language.s4_text import S4TextClassifier, S4TextConfig
from zoo.language.scatterbrain import ScatterbrainConfig, ScatterbrainLanguageModel
from zoo.language.scatterbrain_text import ScatterbrainTextClassifier, ScatterbrainTextConfig
from zoo.language.seqboat import SeqBoatConfig, SeqBoatLanguageModel
from zoo.language.seqboat_text import SeqBoatTextClassifier, SeqBoatTextConfig
from zoo.language.smallthinker import SmallThinkerConfig, SmallThinkerLanguageModel
from zoo.language.titans import LMMLanguageModel, MACLanguageModel, MAGLanguageModel, MALLanguageModel, TitansConfig
from zoo.language.transformer import TransformerConfig, TransformerLanguageModel
from zoo.language.xlstm import XLSTMConfig, XLSTMLanguageModel
from zoo.language.xlstm1 import XLSTM1Config, XLSTM1LanguageModel
from zoo.language.zamba2 import Zamba2Config, Zamba2LanguageModel

__all__ = [
    "BambaConfig",
    "BambaLanguageModel",
    "BasedConfig",
    "BasedLanguageModel",
    "Block",
    "DeepSeekConfig",
    "DeepSeekLanguageModel",
    "DeltaNetConfig",
    "DeltaNetLanguageModel",
    "FalconH1Config",
    "FalconH1LanguageModel",
    "GLAConfig",
    "GLALanguageModel",
    "GatedDeltaNetConfig",
    "GatedDeltaNetLanguageModel",
    "GptOssConfig",
    "GptOssLanguageModel",
    "GraniteHybridConfig",
    "GraniteHybridLanguageModel",
    "HamburgerConfig",
    "HamburgerLanguageModel",
    "HybridConfig",
    "HybridLanguageModel",
    "JambaConfig",
    "JambaLanguageModel",
    "KimiLinearConfig",
    "KimiLinearLanguageModel",
    "LFM2Config",
    "LFM2LanguageModel",
    "LMMLanguageModel",
    "LanguageConfig",
    "LanguageModel",
    "LinformerClassifier",
    "LinformerConfig",
    "LizardConfig",
    "LizardLanguageModel",
    "LongConvConfig",
    "LongConvLanguageModel",
    "LongConvTextClassifier",
    "LongConvTextConfig",
    "MACLanguageModel",
    "MAELREClassifier",
    "MAELREConfig",
    "MAGLanguageModel",
    "MALLanguageModel",
    "Mamba2Config",
    "Mamba2LanguageModel",
    "MambaConfig",
    "MambaLanguageModel",
    "MemoryFormerConfig",
    "MemoryFormerLanguageModel",
    "MiniMaxConfig",
    "MiniMaxLanguageModel",
    "MoDConfig",
    "MoDLanguageModel",
    "MoEConfig",
    "MoELanguageModel",
    "MoHDConfig",
    "MoHDLanguageModel",
    "MoLEConfig",
    "MoLELanguageModel",
    "MoRConfig",
    "MoRLanguageModel",
    "NemotronHConfig",
    "NemotronHLanguageModel",
    "Qwen3NextConfig",
    "Qwen3NextLanguageModel",
    "RWKV7Config",
    "RWKV7LanguageModel",
    "RecurrentGemmaConfig",
    "RecurrentGemmaLanguageModel",
    "RetNetConfig",
    "RetNetLanguageModel",
    "RoutingConfig",
    "RoutingLanguageModel",
    "S4Config",
    "S4DConfig",
    "S4DLanguageModel",
    "S4LanguageModel",
    "S4TextClassifier",
    "S4TextConfig",
    "ScatterbrainConfig",
    "ScatterbrainLanguageModel",
    "ScatterbrainTextClassifier",
    "ScatterbrainTextConfig",
    "SeqBoatConfig",
    "SeqBoatLanguageModel",
    "SeqBoatTextClassifier",
    "SeqBoatTextConfig",
    "SequenceClassifier",
    "SequenceConfig",
    "SmallThinkerConfig",
    "SmallThinkerLanguageModel",
    "TitansConfig",
    "TransformerConfig",
    "TransformerLanguageModel",
    "XLSTM1Config",
    "XLSTM1LanguageModel",
    "XLSTMConfig",
    "XLSTMLanguageModel",
    "Zamba2Config",
    "Zamba2LanguageModel",
]
