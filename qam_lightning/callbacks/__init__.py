"""What happens around a training step: EMA targets, evaluation, logging, checkpoints."""
