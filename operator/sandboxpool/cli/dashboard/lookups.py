"""Reads what is not kept in memory: the pods and events of one pool or sandbox."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sandboxpool.api import names
from sandboxpool.cli import reading
from sandboxpool.cli.cluster import CLAIMS, EVENTS, PODS, Object, Resource
from sandboxpool.client.api import Api
from sandboxpool.client.errors import ApiError, SandboxPoolError
from sandboxpool.client.requests import Request

MAX_PODS = 100
_MAX_EVENTS = 200
_NOT_FOUND = 404


@dataclass(slots=True)
class Sandbox:
    """What was read of one sandbox.

    Attributes:
        problems: Why something could not be read, and what to do.
    """

    claim: Object | None = None
    pod: Object | None = None
    events: list[Object] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Lookups:
    """Reads of one cluster.

    Args:
        api: The API server; its input and output are asyncio's.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def sandbox(self, namespace: str, claim: str, pod: str) -> Sandbox:
        """Read a sandbox, given the name of its claim or, if that is empty, of its pod."""
        found = Sandbox()
        uid = ""
        if claim:
            found.claim = await self._get(CLAIMS, namespace, claim, found.problems)
            pod = reading.text(found.claim, "status", "podName")
            uid = reading.text(found.claim, "status", "podUID")
        if pod:
            read = await self._get(PODS, namespace, pod, found.problems)
            if uid and read is not None and reading.text(read, "metadata", "uid") != uid:
                found.problems.append(f"The pod {pod} is another one of the same name.")
                read = None
            found.pod = read
            owner = reading.text(read, "metadata", "labels", names.LABEL_CLAIM)
            if owner and found.claim is None:
                found.claim = await self._get(CLAIMS, namespace, owner, found.problems)
        for kind, name in (("Pod", pod), ("SandboxClaim", reading.name(found.claim or {}))):
            if name:
                found.events += await self._events(namespace, kind, name, found.problems)
        return found

    async def pods(self, namespace: str, pool_uid: str, problems: list[str]) -> Sequence[Object]:
        """Read the first sandboxes of a pool."""
        query = (("labelSelector", f"{names.LABEL_POOL_UID}={pool_uid}"), ("limit", str(MAX_PODS)))
        return await self._list(PODS, namespace, query, problems)

    async def _events(
        self, namespace: str, kind: str, name: str, problems: list[str]
    ) -> Sequence[Object]:
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        query = (("fieldSelector", selector), ("limit", str(_MAX_EVENTS)))
        return await self._list(EVENTS, namespace, query, problems)

    async def _list(
        self,
        resource: Resource,
        namespace: str,
        query: tuple[tuple[str, str], ...],
        problems: list[str],
    ) -> Sequence[Object]:
        request = Request(
            *("GET", resource.path(namespace), "list", resource.qualified, namespace), query
        )
        try:
            return reading.objects(await self._api.call(request), "items")
        except SandboxPoolError as error:
            problems.append(error.message)
            return []

    async def _get(
        self, resource: Resource, namespace: str, name: str, problems: list[str]
    ) -> Object | None:
        path = resource.path(namespace, name)
        try:
            return await self._api.call(Request("GET", path, "get", resource.qualified, namespace))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                problems.append(f"The {resource.kind} {namespace}/{name} does not exist any more.")
            else:
                problems.append(error.message)
        except SandboxPoolError as error:
            problems.append(error.message)
        return None
