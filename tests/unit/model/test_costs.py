"""What the operator's work costs, counted in a simulated cluster: writes, decodings, copies.

No time is measured here: what is counted does not depend on the machine.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import msgspec
import pytest

from sandboxpool.pools.member_index import MemberFacts, MemberIndex
from sandboxpool.sandboxes.members import Members, classify_pod
from support.simulation.apiserver import Place, Request
from support.simulation.stream import Stream
from support.simulation.world import World

CLAIMS = 200
FEW_CLAIMS = 20
# By then a pool of some hundreds is warm, or as many claims are bound and made up for.
SETTLE_SECONDS = 60.0
IDLE_SECONDS = 600.0
# A pool says no more often how it is.
STATUS_SECONDS = 1.0
# What an informer keeps, and the collection that it comes from.
PROJECTIONS = {"Pod": "pods", "SandboxClaim": "sandboxclaims", "Node": "nodes"}

_sort = MemberIndex.refresh


@dataclass
class Counts:
    """What was done since the last `clear`.

    Attributes:
        decoded: JSON decodings into a type, by its name.
        lines: lines of watches that tell how an object is now, by collection.
        looked_at: pods of which it was gathered what is known, to sort them if it is something new.
        members: pods that were sorted into the members of a pool.
    """

    decoded: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0
    members: int = 0

    def clear(self) -> None:
        self.decoded.clear()
        self.lines.clear()
        self.looked_at = self.members = 0

    def sort(
        self,
        members: MemberIndex,
        facts_of: Callable[[str], MemberFacts | None],
        all_uids: Iterable[str],
        **how: Any,
    ) -> Members:
        """Sort as the operator does, and count what is looked at."""

        def counted(uid: str) -> MemberFacts | None:
            self.looked_at += 1
            return facts_of(uid)

        return _sort(members, counted, all_uids, **how)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is done by operators that are made within."""
    counts = Counts()
    decoder_of, decode = msgspec.json.Decoder, msgspec.json.decode
    lines = Stream.lines

    class CountingDecoder:
        def __init__(self, type_: Any) -> None:
            self._name = type_.__name__
            self._decode = decoder_of(type_).decode

        def decode(self, data: Any) -> Any:
            counts.decoded[self._name] += 1
            return self._decode(data)

    def counting_decode(data: Any, **how: Any) -> Any:
        counts.decoded[getattr(how.get("type"), "__name__", "")] += 1
        return decode(data, **how)

    async def counted_lines(stream: Stream) -> AsyncIterator[bytes]:
        async for line in lines(stream):
            counts.lines[stream.resource] += decode(line)["type"] in ("ADDED", "MODIFIED")
            yield line

    def counted_member_of(*args: Any, **kwargs: Any) -> Any:
        counts.members += 1
        return classify_pod(*args, **kwargs)

    with (
        mock.patch("msgspec.json.Decoder", CountingDecoder),
        mock.patch("msgspec.json.decode", counting_decode),
        mock.patch.object(Stream, "lines", counted_lines),
        mock.patch("sandboxpool.pools.member_index.classify_pod", counted_member_of),
    ):
        yield counts


@contextmanager
def pool_of(replicas: int) -> Iterator[tuple[World, Counts]]:
    """A calm cluster with a pool that is warm, of which all has been told."""
    with (
        counting() as counts,
        World() as world,
        # Each look as the operator does it, without the simulation's check against a full one.
        mock.patch.object(MemberIndex, "refresh", lambda *args, **how: counts.sort(*args, **how)),
    ):
        # Nothing goes wrong here, and at each change of a pod it would look at all of them.
        world.server.listeners.remove(world.watchdog._see)
        world.make_pool(replicas=replicas, startup={"maxStarting": CLAIMS})
        world.run(SETTLE_SECONDS)
        assert len(world.pods()) == replicas
        counts.clear()
        yield world, counts


@contextmanager
def writes(world: World) -> Iterator[Counter[str]]:
    """What is sent within, but for the lease: such as `PATCH sandboxclaims/status`."""
    before, found = len(world.network.writes), Counter[str]()
    yield found
    found.update(kind_of(request) for _, request in world.network.writes[before:])


def kind_of(request: Request) -> str:
    place = Place.of(request.path)
    return f"{request.method} {'/'.join(filter(None, (place.resource, place.subresource)))}"


def make_claims(world: World, count: int) -> None:
    """All at once, and wait until all are bound."""
    for i in range(count):
        world.make_claim(f"claim-{i}")
    world.run(SETTLE_SECONDS)
    assert {c["status"]["phase"] for c in world.server.all("sandboxclaims")} == {"Bound"}


def test_a_claim_costs_two_writes_and_the_pod_that_takes_its_place() -> None:
    with pool_of(CLAIMS) as (world, _):
        before = len(world.network.writes)
        make_claims(world, CLAIMS)
        sent = world.network.writes[before:]
    counted = Counter(kind_of(request) for _, request in sent)
    for status in ("PATCH sandboxpools/status", "PATCH sandboxruntimes/status"):
        times = [at for at, request in sent if kind_of(request) == status]
        assert len(times) == counted.pop(status) > 1
        assert min(b - a for a, b in itertools.pairwise(times)) >= STATUS_SECONDS
    assert counted == {
        "PATCH pods": CLAIMS,
        "PATCH sandboxclaims/status": CLAIMS,
        "POST pods": CLAIMS,
    }


def test_claims_that_wait_cost_no_write() -> None:
    with pool_of(0) as (world, _), writes(world) as sent:
        for i in range(CLAIMS):
            world.make_claim(f"claim-{i}", bindTimeoutSeconds=2 * int(IDLE_SECONDS))
        world.run(IDLE_SECONDS)
        assert not any(c.get("status") for c in world.server.all("sandboxclaims"))
    assert not sent


def test_an_idle_operator_writes_nothing_and_copies_nothing() -> None:
    with pool_of(CLAIMS) as (world, counts):
        make_claims(world, FEW_CLAIMS)
        with writes(world) as sent:
            counts.clear()
            world.run(IDLE_SECONDS)
    assert not sent
    assert not counts.members
    assert not any(counts.decoded[name] for name in PROJECTIONS)


@pytest.mark.parametrize("replicas", [50, 400])
def test_a_change_is_decoded_once_and_costs_the_same_in_a_large_pool(replicas: int) -> None:
    with pool_of(replicas) as (world, counts):
        make_claims(world, FEW_CLAIMS)
    for name, resource in PROJECTIONS.items():
        # The answer to a create is read, too.
        answers = FEW_CLAIMS if name == "Pod" else 0
        assert counts.decoded[name] == counts.lines[resource] + answers
    # Each was handed out, and another one was made, scheduled and started.
    assert counts.lines["pods"] == 4 * FEW_CLAIMS
    # From time to time all are looked at, but not at each change.
    assert counts.looked_at <= 10 * FEW_CLAIMS + 2 * replicas
    # Once for each change, and once more when it is handed out, before the watch tells.
    assert counts.members <= 5 * FEW_CLAIMS
