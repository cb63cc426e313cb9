"""The delta rule (DeltaNet), plain or with decays: one a head (Gated DeltaNet) or one a key channel (Kimi Linear)."""

from zoo.kernels.delta_rule.op import DeltaRuleOutput, delta_rule

__all__ = ["DeltaRuleOutput", "delta_rule"]
