"""Nodes and their runtimes: probes, records, published node labels, SandboxRuntime statuses."""
