"""A browser for tests: Debian's Chromium, and axe-core, which judges how accessible a page is."""
