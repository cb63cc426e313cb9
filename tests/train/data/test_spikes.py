"""Generated spoken digits: sums, spikes where the bands are, samples of their own, options that cannot be."""

import pytest
import torch

from zoo.train.data import SpikeSums, SyntheticDataModule
from zoo.train.data.spikes import DIGITS, NOISE

TASK = SpikeSums()


def test_sums_of_all_digits_and_sparse_spikes():
    spikes, sums = TASK.generate(torch.arange(3000), 5)
    assert spikes.shape == (3000, 50, 32) and spikes.dtype == torch.float32 and sums.dtype == torch.int64
    assert set(spikes.unique().tolist()) == {0.0, 1.0} and NOISE < spikes.mean() < 0.2
    shares = sums.bincount(minlength=19) / 3000
    expected = torch.tensor([min(s + 1, 19 - s) / 100 for s in range(19)])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert torch.equal(TASK.generate(torch.tensor([7]), 5)[0][0], spikes[7])
    assert not torch.equal(TASK.generate(torch.tensor([7]), 6)[0][0], spikes[7])


def test_digits_differ_more_than_their_samples():
    """The nearest mean of a hundred samples knows a digit."""
    rates = TASK._rates(torch.arange(DIGITS).repeat(2, 1).T, torch.zeros(DIGITS, 2, 2).double())[:, 0].flatten(1)
    assert rates.min() >= NOISE and rates.max() < 1
    digits = torch.arange(300) % DIGITS
    shifts = (torch.rand(300, 2, 2) - 0.5).double()
    drawn = (torch.rand(300, rates.shape[1]) < TASK._rates(digits.repeat(2, 1).T, shifts)[:, 0].flatten(1)).double()
    assert (torch.cdist(drawn, rates).argmin(1) == digits).float().mean() > 0.95


def test_the_model_follows_the_data_and_small_sizes_are_refused():
    assert SyntheticDataModule(SpikeSums(channels=16)).demands == {"in_features": 16, "num_classes": 19}
    with pytest.raises(ValueError, match="channels and bins must be >= 8, got channels=4, bins=25"):
        SpikeSums(channels=4)
