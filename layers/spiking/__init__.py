"""Neurons that send spikes."""

from zoo.layers.spiking.lif import LeakyIntegrateAndFire, spike

__all__ = ["LeakyIntegrateAndFire", "spike"]
