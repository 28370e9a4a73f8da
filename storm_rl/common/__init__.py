"""What the algorithms share: policies with observation statistics, rollouts, the critic."""
