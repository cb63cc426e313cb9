"""Long convolutions (FlashButterfly, FlashFFTConv): a kernel as long as the sequence, one a channel."""

from zoo.kernels.long_conv.butterfly import butterfly_conv, dft_factors
from zoo.kernels.long_conv.op import long_conv
from zoo.kernels.long_conv.packed import packed_long_conv

__all__ = ["butterfly_conv", "dft_factors", "long_conv", "packed_long_conv"]
