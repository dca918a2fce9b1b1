"""What a client sees of the API server: late, in part, or not at all.

Watches of different kinds come by connections of their own, so that their news arrive in any
order; a watch cache may stand still while everything else works; and a large answer may be lost on
a way that lets small ones through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Watching(Enum):
    """What a watch brings that does not bring everything."""

    # The server's cache stands still: bookmarks of the version at which it does, and ends.
    BOOKMARKS = "bookmarks only"
    # The connection is open, and nothing comes any more.
    NOTHING = "nothing"


class Listing(Enum):
    """How a list fails, while small requests of the same kind are answered."""

    REFUSED = "504, after a moment"
    LOST = "no answer at all"


@dataclass
class WatchFaults:
    """How the kinds are seen that are not seen well; by their resource, such as `pods`.

    Attributes:
        delay: how many seconds more the news of a kind take on their way, at least and at most;
            drawn for each line, while the lines of one watch keep their order.
        watching: what watches of a kind bring.
        listing: how lists of a kind fail.
    """

    delay: dict[str, tuple[float, float]] = field(default_factory=dict)
    watching: dict[str, Watching] = field(default_factory=dict)
    listing: dict[str, Listing] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Everything is seen as soon as ever."""
        return not (self.delay or self.watching or self.listing)

    def lose(
        self,
        resources: Iterable[str],
        watching: Watching | None = Watching.BOOKMARKS,
        listing: Listing | None = Listing.REFUSED,
    ) -> None:
        """Be blind for some kinds; None leaves the one or the other as it is."""
        for resource in resources:
            if watching is not None:
                self.watching[resource] = watching
            if listing is not None:
                self.listing[resource] = listing

    def recover(self) -> None:
        """See everything again."""
        self.delay.clear()
        self.watching.clear()
        self.listing.clear()
