"""Why a claim does not get a sandbox."""

from dataclasses import dataclass

from sandboxpool.api.reasons import Reason


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a claim gets nothing, now or ever."""

    reason: Reason
    message: str
