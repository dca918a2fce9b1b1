"""Generates docs/reference from docstrings, schemas, metrics, and the help of commands."""
