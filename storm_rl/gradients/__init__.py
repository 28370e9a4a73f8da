"""Policy-gradient estimators, importance weights and Fisher products. Knows tensors and log-probabilities."""
