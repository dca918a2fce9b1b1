"""Draws the diagrams of the documents for the site, with Mermaid in a browser."""
