"""The sidecar process, which puts the rooms in a row."""
