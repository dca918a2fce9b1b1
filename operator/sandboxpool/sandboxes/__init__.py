"""What all sandboxes have in common: the pod, its state, its start."""
