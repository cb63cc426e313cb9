"""The delta rule with momentum: the linear memory of Titans."""

from zoo.kernels.momentum_delta_rule.op import MomentumDeltaRuleOutput, momentum_delta_rule

__all__ = ["MomentumDeltaRuleOutput", "momentum_delta_rule"]
