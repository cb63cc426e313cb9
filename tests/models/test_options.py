"""Options that cannot work fail when the configuration or the module is made, in every family."""

from __future__ import annotations

import dataclasses
import math
import re
import typing

import pytest

import zoo
from zoo.config import FREE
from zoo.layers import CausalAttention, Mamba, Mamba2
from zoo.layers.attention import TaylorAttention
from zoo.layers.conv import CausalConv1d
from zoo.layers.norm import GatedRMSNorm, RMSNorm
from zoo.layers.ssm import S4D

SIGNED = r"(.+_)?scale|.+_multipliers?|mean"  # factors, which may be negative
NONE_OF_IT = (  # counts of which there may be none
    r"num_(classes|shared|hashes|routing_heads)|num_scratch|first_(k_dense|routing)|mtp_depth|mix_dim|exterior_depth"
)


def impossible(config) -> typing.Iterator[tuple[str, object]]:
    """Field, value: sizes below 1, negative rates and weights, and NaN for every number."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, kind, value = field.name, kinds[field.name], getattr(config, field.name)
        scalars = {option for option in (kind, *typing.get_args(kind)) if option in (int, float)}
        bad: list[float] = []
        if isinstance(value, tuple):
            scalars = {type(value[0])} & {int, float} if value else set()
        if float in scalars or int in scalars:
            bad += [-1] * (not re.fullmatch(SIGNED, name))
            bad += [math.nan] * (float in scalars)
            bad += [0] * (int in scalars and not isinstance(value, tuple) and not re.fullmatch(NONE_OF_IT, name))
        for number in bad:
            yield name, tuple(number for _ in value) if isinstance(value, tuple) else number


@pytest.mark.parametrize("name", zoo.list_models("*_nano"))
def test_a_family_refuses_what_cannot_work(name):
    config = zoo.create_model(name, device="meta").config
    accepted = []
    for field, value in impossible(config):
        try:
            zoo.create_model(name, device="meta", **{field: value})
            accepted.append((field, value))
        except (ValueError, TypeError):
            continue
    assert not accepted


@pytest.mark.parametrize("limit", [(1.0, 0.1), (-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), (0.1,)])
@pytest.mark.parametrize("name", ["mamba2_nano", "falcon_h1_nano"])
def test_a_configuration_alone_refuses_step_limits(name, limit):
    config = zoo.create_model(name, device="meta").config
    with pytest.raises(ValueError, match="dt_limit must be"):
        dataclasses.replace(config, dt_limit=limit)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (Mamba, {"dim": 8, "d_state": 0}),
        (Mamba, {"dim": 8, "dt_rank": 0}),
        (Mamba2, {"dim": 8, "head_dim": 4, "chunk_size": 0}),
        (Mamba2, {"dim": 8, "head_dim": 4, "dt_limit": (1.0, 0.1)}),
        (Mamba2, {"dim": 8, "head_dim": 0}),
        (S4D, {"dim": 8, "chunk_size": 0}),
        (TaylorAttention, {"dim": 8, "num_heads": 2, "chunk_size": 0}),
        (CausalAttention, {"dim": 8, "num_heads": 0}),
        (CausalAttention, {"dim": 8, "num_heads": 2, "num_kv_heads": 0}),
        (CausalConv1d, {"dim": 8, "kernel_size": 1}),
        (RMSNorm, {"dim": 8, "eps": -1.0}),
        (GatedRMSNorm, {"dim": 8, "num_groups": 3}),
    ],
)
def test_a_layer_refuses_what_cannot_work(layer, options):
    *_, (name, value) = options.items()
    with pytest.raises(ValueError, match=rf"{name}.*{re.escape(str(value))}"):
        layer(**options)


def test_dropout_and_learning_rates_change_no_output_of_a_trained_model():
    """So files made with others are no other model."""
    names = {field.name for name in zoo.list_models("*_nano") for field in dataclasses.fields(config_of(name))}
    training = {name for name in names if re.fullmatch(r".*(dropout|drop_rate|drop_path_rate|_lr)", name)}
    assert {"kernel_lr", "kernel_dropout", "mixer_drop_rate"} <= training <= FREE


def config_of(name: str):
    return zoo.registry.lookup(name).configure()
