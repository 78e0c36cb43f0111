"""The Grafana dashboards: made here, committed as ``alerts/dashboards/*.json``."""
