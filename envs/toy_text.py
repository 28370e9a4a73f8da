"""Gymnasium's CliffWalking with a time limit, without which a deterministic policy may walk for ever."""

import gymnasium as gym

gym.register(
    "CliffWalkingLimited-v1",
    entry_point="gymnasium.envs.toy_text.cliffwalking:CliffWalkingEnv",
    max_episode_steps=200,
)
