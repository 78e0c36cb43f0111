"""Banks of probes: format, fitting, scoring."""
