"""Policies by name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from zoo.layers.cache.budget import parsed
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.store import Disk, Host, Quantized


def policies() -> dict[str, type[Policy]]:
    """Name -> class of all policies of ``zoo.cache``; the name is that of the file."""
    from zoo.layers import cache

    classes = (getattr(cache, name) for name in cache.__all__)
    found = [one for one in classes if isinstance(one, type) and issubclass(one, Policy) and one is not Policy]
    return dict(sorted((one.__module__.rpartition(".")[2], one) for one in found))


def policy_of(policy: Policy | str, **options: Any) -> Policy:
    """A policy, given as one, or by its name and options.

    Raises:
        ValueError: for a name of none, or options out of range. TypeError: for an unknown option, or no policy.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"a cache policy is an object of zoo.cache or its name, got {policy!r}")
    known = policies()
    if policy not in known:
        raise ValueError(f"there is no cache policy {policy!r}{_nearest(policy, known)}; there are {', '.join(known)}")
    names = [field.name for field in dataclasses.fields(known[policy]) if field.init]
    for name in options:
        if name not in names:
            raise TypeError(f"{policy} has no option {name!r}{_nearest(name, names)}; its options: {', '.join(names)}")
    return known[policy](**options)


def option(name: str, text: str) -> Any:
    """The value of an option as it is written on a command line; a store is "int8", "int4", "host" or "disk".

    Raises:
        ValueError: for what is no number, budget, or true or false.
    """
    words = {"true": True, "false": False, "none": None, "host": Host(), "disk": Disk()}
    words |= {"int8": Quantized(8), "int4": Quantized(4)}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return parsed(text)
    except ValueError as error:
        raise ValueError(
            f"cache.{name} must be a number, a memory such as 64MiB, true, false, none or a store (int8, "
            f"int4, host, disk), "
            f"got {text!r}"
        ) from error


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
