"""Where results go: metrics, alerts, pages."""
