"""Kubernetes over HTTP: client, informer, work queue, events. Knows nothing of pools and claims."""
