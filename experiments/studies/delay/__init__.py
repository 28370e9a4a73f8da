"""Momentum under delay: streaming PCA, where its limits are known, and STORM+PG with rollouts of old policies."""
