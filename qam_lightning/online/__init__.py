"""Acting and learning at once: environments that run ahead, the replay, when steps are due."""
