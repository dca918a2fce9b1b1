"""Metrics, probes and the authorization of their readers."""
