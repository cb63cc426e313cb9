"""Models of sound: one file a family."""

from zoo.audio.deftan2 import DeFTAN2, DeFTAN2Config
from zoo.audio.files import draw_spectrograms, read_wave, write_wave
from zoo.audio.spectrum import as_loud_as_in, spectrum, waveform

__all__ = [
    "DeFTAN2",
    "DeFTAN2Config",
    "as_loud_as_in",
    "draw_spectrograms",
    "read_wave",
    "spectrum",
    "waveform",
    "write_wave",
]
