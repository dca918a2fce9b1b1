"""Keeps one SandboxRuntime for each RuntimeClass that exists or that a pool names.

The objects are the operator's own: what others write into them is overwritten, and one that they
delete is made again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.conditions import stored_conditions
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxRuntime
from sandboxpool.fleet.status import RuntimeStatusInput, runtime_status, urgent_part
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.util.references import ObjectReference
from sandboxpool.util.resource_version import parse_resource_version

RUNTIMES_PATH = resource_path(names.API_VERSION, names.RUNTIMES)

# The status of a class is written no more often than this,
WRITE_INTERVAL_SECONDS = 1.0
# and than this, if only that has changed which changes with every sandbox and every failure.
RESTLESS_INTERVAL_SECONDS = 5.0
# Time alone changes a status while issues and samples leave their windows.
WINDOW_CHECK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _LastWrite:
    """The status that was sent last, when, and what the server made of it."""

    at: float
    status: Mapping[str, Any]
    echo: Mapping[str, Any]


class RuntimeReconciler:
    """Works on one RuntimeClass at a time.

    Args:
        gather: gives what is known of the class of this name; None if it does not exist and no
            pool names it.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        gather: Callable[[str], RuntimeStatusInput | None],
        events: EventRecorder,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._gather = gather
        self._events = events
        self._clock = clock
        self._stored: dict[str, SandboxRuntime] = {}
        self._written: dict[str, _LastWrite] = {}

    def observe(self, old: SandboxRuntime | None, new: SandboxRuntime | None) -> bool:
        """Take in a change that the informer tells of.

        Returns:
            Whether the class has to be looked at again. Our own writes are no news.
        """
        if new is not None:
            return self._take(new)
        assert old is not None, "a change has a before or an after"
        return self._drop(old)

    def _take(self, new: SandboxRuntime) -> bool:
        known = self._stored.get(new.metadata.name)
        if known is not None and _version(known) >= _version(new):
            return False
        self._stored[new.metadata.name] = new
        return True

    def _drop(self, gone: SandboxRuntime) -> bool:
        known = self._stored.get(gone.metadata.name)
        if known is None or known.metadata.uid != gone.metadata.uid:
            return False
        del self._stored[gone.metadata.name]
        return True

    async def reconcile(self, name: str) -> float | None:
        """Bring one SandboxRuntime up to date; return the seconds until it is due again."""
        stored, given = self._stored.get(name), self._gather(name)
        if given is None:
            self._written.pop(name, None)
            if stored is None:
                return None
            path = resource_path("node.k8s.io/v1", "runtimeclasses", name=name)
            if await self._client.find(path) is not None:
                # The cache of classes is behind, or cannot read it; what this says of the class
                # cannot be had back.
                return RESTLESS_INTERVAL_SECONDS
            await self._delete(stored)
            return None
        if stored is None:
            wait = self._wait(name, WRITE_INTERVAL_SECONDS)
            if wait > 0:
                return wait
            stored = await self._create(name)
            self._written.pop(name, None)
        status = runtime_status(given, stored.status)
        written = self._written.get(name)
        untouched = written is not None and stored.status == written.echo
        # What the server holds may be what we sent in its own words: an older CRD drops fields.
        shown = written.status if written is not None and untouched else stored.status
        if status != shown:
            restless = untouched and urgent_part(status) == urgent_part(shown)
            wait = self._wait(
                name, RESTLESS_INTERVAL_SECONDS if restless else WRITE_INTERVAL_SECONDS
            )
            if wait > 0:
                return wait
            await self._write(stored, status)
            if given.pools:
                # Of a class that nobody uses the status says enough.
                self._announce(stored, status)
        return WINDOW_CHECK_SECONDS if given.issues or given.startup is not None else None

    def _wait(self, name: str, interval: float) -> float:
        written = self._written.get(name)
        return written.at + interval - self._clock() if written is not None else 0.0

    async def _create(self, name: str) -> SandboxRuntime:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.RUNTIME_KIND,
            "metadata": {"name": name},
        }
        try:
            answer = await self._client.create(RUNTIMES_PATH, body)
        except ApiError as error:
            if not error.already_exists:
                raise
            answer = await self._client.get(_path(name))
        stored = msgspec.json.decode(answer, type=SandboxRuntime)
        self._take(stored)
        return stored

    async def _write(self, stored: SandboxRuntime, status: dict[str, Any]) -> None:
        name = stored.metadata.name
        try:
            answer = await self._client.replace_status(_path(name), stored.metadata.uid, status)
        except ApiError as error:
            if error.not_found:
                self._drop(stored)
            raise
        new = msgspec.json.decode(answer, type=SandboxRuntime)
        self._written[name] = _LastWrite(self._clock(), status, new.status)
        self._take(new)

    async def _delete(self, stored: SandboxRuntime) -> None:
        try:
            await self._client.delete(_path(stored.metadata.name), uid=stored.metadata.uid)
        except ApiError as error:
            # Gone, or another one by now, of which the watch will tell.
            if not (error.not_found or error.conflict):
                raise
        self._drop(stored)

    # --- Events --------------------------------------------------------------------------------

    def _announce(self, stored: SandboxRuntime, status: Mapping[str, Any]) -> None:
        """Post an event for each transition; several conditions may share one."""
        about = ObjectReference(
            names.API_VERSION, names.RUNTIME_KIND, "", stored.metadata.name, stored.metadata.uid
        )
        former = stored.status
        if former.get("classUID") and former["classUID"] != status["classUID"]:
            self._events.warning(
                about,
                str(Reason.RUNTIME_CHANGED),
                f"RuntimeClass {about.name!r} was deleted and made again: its handler was "
                f"{former.get('handler')!r} and is {status['handler']!r} now",
            )
        before = {c.type: (c.status, c.reason) for c in stored_conditions(former)}
        announced = set()
        for condition in status["conditions"]:
            type_, now = condition["type"], (condition["status"], condition["reason"])
            if now in announced or not _transition(type_, before.get(type_), now):
                continue
            announced.add(now)
            post = self._events.normal if now[0] == "True" else self._events.warning
            post(about, now[1], condition["message"])


def _transition(type_: str, before: tuple[Any, Any] | None, now: tuple[str, str]) -> bool:
    """Whether a condition's change is worth an event; ``Unknown`` never is."""
    match now[0]:
        case "True":
            return before is not None and before[0] != "True"
        case "False":
            # While much is wrong, what is worst changes often.
            return before != now and not (
                type_ == "Healthy" and before is not None and before[0] == "False"
            )
        case _:
            return False


def _path(name: str) -> str:
    return resource_path(names.API_VERSION, names.RUNTIMES, name=name)


def _version(stored: SandboxRuntime) -> int:
    return parse_resource_version(stored.metadata.resourceVersion)
