"""A run: loss, optimiser, step, loop, checkpoints and the run directory."""
