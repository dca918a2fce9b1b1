"""An application that claims one sandbox after the other, whatever happens to the operator."""

import itertools
import threading
import time
from typing import Self

from support import objects
from support.api import Api
from support.sandboxes import phase

_BOUND_SECONDS = 60.0


class Application:
    """Claims, is bound and releases, in a thread; use as a context manager.

    Attributes:
        waits: How long each claim has waited for its sandbox, in seconds.
    """

    def __init__(self, api: Api, pool: str = "pool") -> None:
        self.waits: list[float] = []
        self._api = api
        self._pool = pool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends with the claim that is waiting, and raises what went wrong."""
        self._stop.set()
        self._thread.join(_BOUND_SECONDS + 10)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                name = f"application-{id(self)}-{number}"
                begun = time.monotonic()
                self._api.create(objects.claim(name, self._pool))
                phase(self._api, "Bound", name, _BOUND_SECONDS)
                self.waits.append(time.monotonic() - begun)
                self._api.delete("SandboxClaim", name)
                self._stop.wait(0.5)
        except BaseException as error:
            self._failure = error
