"""Integration tests against the API servers of other versions of Kubernetes."""
