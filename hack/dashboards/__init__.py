"""Generates the Grafana dashboards of the chart."""
