"""The fleet as it is found to be: what is kept of nodes, probes, what is shown of runtimes."""
