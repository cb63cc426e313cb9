"""What attention remembers and sees: one policy a file. How slots are kept in memory is the stores' business."""

from zoo.layers.cache.actqkv import ActQKV
from zoo.layers.cache.budget import Bytes
from zoo.layers.cache.cost import DecodingCost, decoding_cost
from zoo.layers.cache.dense import Dense
from zoo.layers.cache.duo_attention import DuoAttention
from zoo.layers.cache.emllm import EMLLM
from zoo.layers.cache.gates import learn_gates
from zoo.layers.cache.h2o import H2O
from zoo.layers.cache.infllm import InfLLM
from zoo.layers.cache.kinetics import Kinetics
from zoo.layers.cache.lazy_eviction import LazyEviction
from zoo.layers.cache.look_m import LookM
from zoo.layers.cache.loopserve import LoopServe
from zoo.layers.cache.lserve import LServe
from zoo.layers.cache.mpcache import MPCache
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.prefixkv import PrefixKV
from zoo.layers.cache.prompt_distill import PromptDistill
from zoo.layers.cache.razor_attention import RazorAttention, head_scores
from zoo.layers.cache.recycled_attention import RecycledAttention
from zoo.layers.cache.sentence_kv import SentenceKV
from zoo.layers.cache.snapkv import SnapKV
from zoo.layers.cache.speckv import SpecKV
from zoo.layers.cache.store import Disk, Host, Quantized, Store
from zoo.layers.cache.streaming_llm import StreamingLLM
from zoo.layers.cache.think import ThinK
from zoo.layers.cache.token_select import TokenSelect
from zoo.layers.cache.zipvl import ZipVL

__all__ = [
    "EMLLM",
    "H2O",
    "ActQKV",
    "Bytes",
    "DecodingCost",
    "Dense",
    "Disk",
    "DuoAttention",
    "Host",
    "InfLLM",
    "Kinetics",
    "LServe",
    "LazyEviction",
    "LookM",
    "LoopServe",
    "MPCache",
    "Policy",
    "PrefixKV",
    "PromptDistill",
    "Quantized",
    "RazorAttention",
    "RecycledAttention",
    "SentenceKV",
    "SnapKV",
    "SpecKV",
    "Store",
    "StreamingLLM",
    "ThinK",
    "TokenSelect",
    "ZipVL",
    "decoding_cost",
    "head_scores",
    "learn_gates",
]
