"""What the algorithms share: policies with observation statistics, importance weights, checks, saving, resuming."""
