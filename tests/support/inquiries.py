"""An inquiry for parts that are tested without one."""

from __future__ import annotations

from typing import Any, cast

from sandboxpool.api.core import Pod
from sandboxpool.pools.inquiry import Inquiry


class Unasked(Inquiry):
    """Reads nothing: every pod is given up by what its status says."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), lambda pod: None)

    def ask(self, pod: Pod, line: str, stage: str) -> None:
        """Read nothing."""
