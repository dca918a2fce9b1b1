"""Generates docs/reference from docstrings and from the help of commands."""
