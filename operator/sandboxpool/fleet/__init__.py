"""The fleet as it is found to be: probes, what is remembered of nodes, what is shown of runtimes."""
