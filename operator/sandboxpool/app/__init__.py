"""Builds the operator and runs it."""
