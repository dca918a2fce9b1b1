"""A browser for tests and diagrams: Debian's Chromium, and scripts that are run in its pages."""
