"""Prometheus' part of the alerts: a policy file becomes recording rules, alerting rules and Alertmanager's routes."""

SIDECARS = 'job="affect-monitor"'
"""Label matchers that select the sidecars, unless others are given."""
