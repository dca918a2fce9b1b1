"""Keeping the warm stock: pure decisions, and the one module that applies them."""
