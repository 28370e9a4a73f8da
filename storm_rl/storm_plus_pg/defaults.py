"""Defaults of STORM+PG that follow the number of environments, and whether a features extractor is trained."""

# Transitions of a rollout, and vector steps of it at least; nats of a step at most for a rollout of that size.
ROLLOUT_TRANSITIONS = 512
MIN_STEPS = 16
STEP_KL = 0.02


def rollout_steps(n_envs: int) -> int:
    """The same number of transitions whatever the number of environments, until too few steps of each are left."""
    return max(MIN_STEPS, -(-ROLLOUT_TRANSITIONS // n_envs))


def target_kl(size: int) -> float:
    """Largest KL of a step from a rollout of ``size`` transitions, in nats: larger ones are less noisy."""
    return STEP_KL * min(2.0, max(1.0, size / ROLLOUT_TRANSITIONS))


def work(size: int, batch_size: int, learns_features: bool) -> tuple[int, int, int]:
    """Rollouts of ``size`` transitions that an update learns from, steps of the critic, states of the Fisher matrix.

    Where a features extractor is trained, as for images, an update costs its passes through that.
    """
    if learns_features:
        return 1, min(160, 2 * -(-size // batch_size)), 128
    return min(4, max(1, round(4 * ROLLOUT_TRANSITIONS / size))), 160, 1024
