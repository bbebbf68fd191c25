"""Metrics for Prometheus, of control worker and workers; off unless ``KELPIE_METRICS_PORT`` is set."""
