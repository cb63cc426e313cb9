"""The delta rule (DeltaNet), plain or with one decay a head (Gated DeltaNet)."""

from zoo.kernels.delta_rule.op import DeltaRuleOutput, delta_rule

__all__ = ["DeltaRuleOutput", "delta_rule"]
