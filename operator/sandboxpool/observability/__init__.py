"""Metrics, probes and who may read them."""
