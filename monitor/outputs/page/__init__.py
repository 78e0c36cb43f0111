"""The status page: what is watched, how it is doing and why something alarms, for people without a dashboard."""
