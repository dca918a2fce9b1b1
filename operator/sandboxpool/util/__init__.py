"""Helpers without dependencies on the other packages."""
