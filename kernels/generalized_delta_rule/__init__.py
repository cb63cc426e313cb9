"""The delta rule with a transition of diagonal plus rank one (RWKV-7)."""

from zoo.kernels.generalized_delta_rule.op import GeneralizedDeltaRuleOutput, generalized_delta_rule

__all__ = ["GeneralizedDeltaRuleOutput", "generalized_delta_rule"]
