"""What capture costs an inference engine: the same prompts with it off, on, and on with a dead sidecar, in one run."""
