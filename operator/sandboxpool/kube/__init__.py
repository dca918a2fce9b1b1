"""Kubernetes over HTTP: client, informer, work queue, events, leader election."""
