"""How fast the sidecar is beside its own physical limit, measured with real processes in one run."""
