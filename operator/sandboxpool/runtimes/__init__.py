"""Assesses RuntimeClasses on nodes. Pure: no input, no output, no clock."""
