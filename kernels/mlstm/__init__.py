"""The recurrence of the mLSTM: a matrix memory with exponential gates, normalised and stabilised."""

from zoo.kernels.mlstm.op import MLSTMOutput, mlstm

__all__ = ["MLSTMOutput", "mlstm"]
