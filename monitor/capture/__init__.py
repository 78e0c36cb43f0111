"""Runs inside the inference server: takes hidden states and sends them to the sidecar. Imports ``wire`` alone."""
