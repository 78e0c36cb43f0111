"""Is it the same in other versions of a model: as it is, realigned, calibrated anew."""
