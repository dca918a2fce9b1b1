"""``python -m sandboxpool.app.selftest``: whether a deployed operator works; for ``helm test``.

That its pods are ready says that they can read the API. This looks for what only a working leader
writes: the renewal of its lease, and a SandboxRuntime for each RuntimeClass. The operator's own
permissions are enough for both.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sandboxpool.api import names
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.credentials import CredentialsError, connection_info
from sandboxpool.kube.errors import UNREADABLE, KubeError

USER_AGENT = "sandboxpool-selftest"
PAUSE_SECONDS = 1.0
DEFAULT_SECONDS = 60.0


class _Metadata(msgspec.Struct):
    name: str


class _Object(msgspec.Struct):
    metadata: _Metadata


class _List(msgspec.Struct):
    items: list[_Object]


class _LeaseSpec(msgspec.Struct):
    holderIdentity: str | None = None
    renewTime: str | None = None


class _Lease(msgspec.Struct):
    spec: _LeaseSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operator has written at some moment.

    Attributes:
        leader: who holds the lease; empty if nobody does.
        renewed: when the lease was renewed, as the holder wrote it.
        classes: the RuntimeClasses of the cluster.
        runtimes: the SandboxRuntimes of the cluster.
    """

    leader: str
    renewed: str
    classes: frozenset[str]
    runtimes: frozenset[str]


def problems(first: Seen, now: Seen) -> list[str]:
    """What is missing for an operator that works, given two looks at it some time apart."""
    found = []
    if not now.leader:
        found.append("no replica leads: see `kubectl logs` of the operator's pods")
    elif (first.leader, first.renewed) == (now.leader, now.renewed):
        # Only the order of two renewals is known: the clocks of two machines are not compared.
        found.append(f"{now.leader} holds the lease and does not renew it")
    if missing := sorted(now.classes - now.runtimes):
        found.append(f"no SandboxRuntime reports on the RuntimeClasses {', '.join(missing)}")
    return found


async def look(client: ApiClient, namespace: str, lease: str, *, runtimes: bool) -> Seen:
    """Read what the operator has written.

    Args:
        client: with the operator's permissions.
        namespace: the operator's namespace.
        lease: the name of its lease.
        runtimes: whether it is the one that writes SandboxRuntimes.

    Raises:
        KubeError: a request failed.
        UNREADABLE: a response cannot be decoded.
    """
    path = resource_path("coordination.k8s.io/v1", "leases", namespace, lease)
    body = await client.find(path)
    spec = msgspec.json.decode(body, type=_Lease).spec if body is not None else _LeaseSpec()
    classes: frozenset[str] = frozenset()
    reported: frozenset[str] = frozenset()
    if runtimes:
        classes = await _names(client, resource_path("node.k8s.io/v1", "runtimeclasses"))
        reported = await _names(client, resource_path(names.API_VERSION, names.RUNTIMES))
    return Seen(spec.holderIdentity or "", spec.renewTime or "", classes, reported)


async def _names(client: ApiClient, path: str) -> frozenset[str]:
    listed = msgspec.json.decode(await client.get(path), type=_List)
    return frozenset(one.metadata.name for one in listed.items)


async def test(
    client: ApiClient, namespace: str, lease: str, *, runtimes: bool, seconds: float
) -> list[str]:
    """Look until nothing is missing, or the time is over; return what is missing then."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    first: Seen | None = None
    while True:
        try:
            now = await look(client, namespace, lease, runtimes=runtimes)
            if first is None:
                first = now
            found = problems(first, now)
        except (KubeError, *UNREADABLE) as error:
            found = [f"the API server cannot be asked: {error}"]
        if not found or clock() >= deadline:
            return found
        await asyncio.sleep(PAUSE_SECONDS)


async def _run(options: argparse.Namespace) -> list[str]:
    async with ApiClient(connection_info(), user_agent=USER_AGENT) as client:
        return await test(
            client,
            options.namespace,
            options.lease,
            runtimes=options.runtimes,
            seconds=options.seconds,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Test an operator; return 0 if it works."""
    parser = argparse.ArgumentParser(prog="sandboxpool.app.selftest", description=__doc__)
    parser.add_argument("--namespace", required=True, help="the operator's namespace")
    parser.add_argument("--lease", required=True, help="the name of its Lease")
    parser.add_argument(
        "--runtimes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether it writes SandboxRuntimes",
    )
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="wait at most")
    options = parser.parse_args(arguments)
    try:
        found = asyncio.run(_run(options))
    except CredentialsError as error:
        found = [str(error)]
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print("the operator works")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
