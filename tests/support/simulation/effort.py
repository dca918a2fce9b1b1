"""How long the searches of `unit/model` go on."""

from __future__ import annotations

import os

# Histories of each kind. `make model SIMULATIONS=5000` is a long search.
SIMULATIONS = int(os.environ.get("SANDBOXPOOL_SIMULATIONS", "25"))
