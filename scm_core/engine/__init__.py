"""What trains and samples: stages, the run, checkpoints."""
