"""Training: set-up, the loop, one step, evaluation, checkpoints."""
