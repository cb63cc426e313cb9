"""StackVAE-G: the graph, the losses by hand, channels apart and in another order, scores, files, `zoo predict`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from zoo.cli import main
from zoo.series import ChannelGraph, StackVAE, StackVAEConfig, edge_precision, read_series
from zoo.train.data import SeriesDataModule
from zoo.train.tasks import AnomalyDetection
from zoo.train.tasks.anomaly import separation


def built(**options: Any) -> StackVAE:
    torch.manual_seed(0)
    config = {"channels": 5, "window": 7, "hidden_dim": 6, "latent_dim": 3, "node_dim": 4, "neighbors": 2, **options}
    return StackVAE(StackVAEConfig(**config)).double().eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("own", [0.0, 1.0])
def test_rows_of_the_graph_are_means_over_few_neighbours(scaled: bool, own: float) -> None:
    torch.manual_seed(1)
    graph = ChannelGraph(9, 6, 3, scaled).double()
    found = graph(own)
    e = torch.tanh(3 * graph.project(graph.nodes))
    for i, row in enumerate(found):
        weights = torch.relu(3 * torch.tanh(e @ e[i] / (6 if scaled else 1)))
        weights[i] = weights[i] if own else 0
        wanted = torch.zeros(9, dtype=torch.double)
        kept = weights.topk(3).indices
        wanted[kept] = weights[kept]
        wanted[i] += own
        close(row, wanted / wanted.sum())
    assert (found > 0).sum(1).max() <= 3 + (own > 0)


def test_as_released_the_graph_saturates() -> None:
    """Of the pairs of channels, far more than with the mean have the likeness 1 to a hundredth, so that nothing moves
    their edges."""
    torch.manual_seed(0)
    shares = []
    for scale in (1, 30):
        e = torch.tanh(3 * ChannelGraph(40, 30, 5, False).project(torch.randn(40, 30)))
        shares.append((torch.tanh(e @ e.mT / scale).abs()[~torch.eye(40, dtype=torch.bool)] > 0.99).float().mean())
    assert shares[0] > 0.4 and shares[1] < 0.01


def test_the_losses_by_hand() -> None:
    model, x = built(neighbors_alone=True).train(), torch.randn(4, 7, 5, dtype=torch.double)
    torch.manual_seed(3)
    found = model(x)
    torch.manual_seed(3)
    h = model.encoder(x.transpose(1, 2))
    h = 0.5 * torch.einsum("ij,bjd->bid", model.neighbors(), h) + 0.5 * h
    mean, log_variance = model.mean(h), model.log_variance(h)
    z = torch.distributions.Normal(mean, (log_variance / 2).exp())
    h = model.decoder(mean + z.scale * torch.randn_like(mean))
    out = model.out_mean(h)
    close(found, (out + (model.out_log_variance(h) / 2).exp() * torch.randn_like(out)).transpose(1, 2))
    losses = model.auxiliary_losses
    divergence = torch.distributions.kl_divergence(z, torch.distributions.Normal(0 * mean, 1.0))
    close(losses["divergence"], divergence.sum() / 4 / 35)
    others = torch.einsum("ij,btj->bti", model.neighbors(own=0.0), x)
    close(losses["graph"], (x - others).square().mean())
    model.eval()(x)
    assert not model.auxiliary_losses


def test_without_the_graph_channels_are_apart() -> None:
    x = torch.randn(2, 7, 5, dtype=torch.double)
    other = x.clone()
    other[..., 3] += 1
    alone, mixed = built(mix=0.0), built(neighbors=5)
    changed = (alone(x) != alone(other)).any(0).any(0)
    assert changed.tolist() == [False, False, False, True, False]
    assert (mixed(x) != mixed(other)).any(0).any(0).sum() > 1


def test_channels_in_another_order() -> None:
    model, x, order = built(), torch.randn(2, 7, 5, dtype=torch.double), torch.tensor([3, 0, 4, 1, 2])
    wanted = model(x)[..., order]
    model.neighbors.nodes.data = model.neighbors.nodes.data[order]
    close(model(x[..., order]), wanted)


def test_scores_are_the_errors_of_the_last_moments() -> None:
    model, series = built(), torch.randn(20, 5, dtype=torch.double)
    found = model.scores(series, batch_size=4)
    assert found.shape == (14, 5)
    for end in (0, 6, 13):
        window = series[None, end : end + 7]
        close(found[end], (model(window) - window)[0, -1].square())
    with pytest.raises(ValueError, match=r"a series must be \(T, 5\) with T >= window 7, got \(6, 5\)"):
        model.scores(series[:6])


def test_the_share_of_edges_within_groups() -> None:
    adjacency = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    assert edge_precision(adjacency, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3)
    assert np.isnan(edge_precision(torch.eye(3), torch.arange(3)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"neighbors": 6}, "neighbors must be at most channels 5, got 6"),
        ({"mix": 1.5}, r"mix must be in \[0, 1\], got 1.5"),
        ({"mean": (0.0,)}, "mean must have a number for each of 5 channels, got 1"),
        ({"std": (1.0, 1.0, 0.0, 1.0, 1.0)}, "std must be finite and above 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**options)


@pytest.mark.parametrize("x", [torch.zeros(2, 5, 7), torch.zeros(7, 5), torch.zeros(2, 7, 5, dtype=torch.int64)])
def test_wrong_series(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"series must be \(batch, window 7, channels 5\) floats, got"):
        built()(x)


def test_the_task_scores_moments() -> None:
    data = SeriesDataModule(length=400)
    data.setup()
    task: Any = AnomalyDetection("stack_vae_nano")
    task.configure_model()
    task.log_dict = task.log = lambda *_, **__: None
    windows, anomalous = data.sources["test"].fetch(torch.arange(300), 0)
    task.eval()
    with torch.no_grad():
        windows[:128] *= 0.4  # of one batch all scores are below one
        for part in zip(windows.split(128), anomalous.split(128), strict=True):
            task.test_step(part, 0)
        errors = (task.trained(windows) - windows).square()[:, -1]
    assert task.auroc.compute().item() == pytest.approx(separation(task.trained, windows, anomalous))
    hits = [bool(row[error.argmax()]) for error, row in zip(errors, anomalous, strict=True) if row.any()]
    assert task.diagnosis.compute().item() == pytest.approx(sum(hits) / len(hits))


def test_generated_series_have_groups_and_anomalies() -> None:
    data = SeriesDataModule(length=2000)
    data.setup()
    whole, labels = data.series(5, anomalies=True)
    normal, nothing = data.series(5)
    assert torch.equal(whole[~labels], normal[~labels]) and not nothing.any()
    assert 0.04 < labels.any(1).float().mean() < 0.12 and (labels.sum(1).unique().tolist() == [0, 3])
    together = torch.corrcoef(normal.T)
    same = data.group_of[:, None] == data.group_of
    assert together[same].min() > 0.9 and together[~same].abs().max() < 0.4
    windows, last = data.sources["val"].fetch(torch.tensor([0, 7]), 0)
    assert windows.shape == (2, 32, 12) and last.dtype == torch.bool
    assert abs(data.sources["train"].fetch(torch.arange(1900), 0)[0].mean()) < 0.05
    with pytest.raises(ValueError, match="length >= 2 \\* window"):
        SeriesDataModule(length=63)


def test_predict_from_a_file(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model: Any = zoo.create_model("stack_vae_nano", mean=(1.0,) * 12, std=(2.0,) * 12)
    zoo.save_model(model, tmp_path / "model")
    series = torch.randn(50, 12)
    series[40, 3] = 100.0
    np.savetxt(tmp_path / "a.csv", series.numpy(), delimiter=",", header=",".join("abcdefghijkl"), comments="")
    np.save(tmp_path / "a.npy", series.numpy())
    torch.testing.assert_close(read_series(tmp_path / "a.csv", 12), read_series(tmp_path / "a.npy", 12))
    where = f"local-dir:{tmp_path / 'model'}"
    assert main(["predict", where, str(tmp_path / "a.csv"), "--top-k", "2", "--output", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out.splitlines()
    score = model.eval().scores((series - 1) / 2)[9].mean().item()
    row = next(line for line in said if "40" in line.split()[1:2])
    assert f"{score:.3f}" in row and "3, " in row
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2\n3,4\n", "must hold a series"),
        ("a,b\n1,x\n", "must hold numbers with commas between them"),
        (",".join(["nan"] * 12) + "\n", "must hold finite numbers, got 12 others"),
    ],
)
def test_wrong_files(tmp_path: Any, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_series(tmp_path / "a.csv", 12)
