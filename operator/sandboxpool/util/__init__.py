"""Small parts without knowledge of Kubernetes."""
