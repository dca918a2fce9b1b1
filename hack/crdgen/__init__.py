"""Writes the CustomResourceDefinitions from the classes of the API."""
