"""Writes the CustomResourceDefinitions from the pydantic models of the API."""
