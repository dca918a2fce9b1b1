"""Assigns sandboxes to claims."""
