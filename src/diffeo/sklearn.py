"""The estimators of scikit-learn, under a short name; see ``diffeo.integrations.sklearn``."""

from diffeo.integrations.sklearn import FlowDensity, FlowImputer, FlowOutlier, FlowRegressor

__all__ = ["FlowDensity", "FlowImputer", "FlowOutlier", "FlowRegressor"]
