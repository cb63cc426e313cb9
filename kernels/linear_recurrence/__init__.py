"""The diagonal linear recurrence with a decay a step and channel."""

from zoo.kernels.linear_recurrence.op import RecurrenceOutput, linear_recurrence

__all__ = ["RecurrenceOutput", "linear_recurrence"]
