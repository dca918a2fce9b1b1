"""Measures the operator on a real API server with fake nodes, and writes down what came out."""
