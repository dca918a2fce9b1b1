"""Builds the components of the operator and runs the process."""
