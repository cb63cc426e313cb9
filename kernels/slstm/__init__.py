"""The recurrence of the sLSTM: scalar memories with exponential gates that see the outputs of the step before."""

from zoo.kernels.slstm.op import SLSTMOutput, slstm

__all__ = ["SLSTMOutput", "slstm"]
