"""Which claim gets which sandbox."""
