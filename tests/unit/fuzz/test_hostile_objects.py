"""Objects that nobody should make, in lists and in watches: the operator goes on with all others.

They are put on the wire as bytes, so they may be anything at all: what an older CRD let in, what a
broken proxy made of it, or what somebody wrote to do harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxpool.kube.errors import UNREADABLE
from support.builders import claim_body, pod_body, pool_body, runtime_class
from support.simulation.network import SimulatedClient
from support.simulation.world import World

NODE = {
    "metadata": {"name": "evil", "uid": "evil-uid", "resourceVersion": "5", "labels": {"a": "b"}},
    "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"bootID": "b"},
        "runtimeHandlers": [{"name": "runsc"}],
    },
}
EVENT = {
    "metadata": {"name": "evil", "namespace": "default", "uid": "e", "resourceVersion": "6"},
    "involvedObject": {"kind": "Pod", "namespace": "default", "name": "evil", "uid": "evil-uid"},
    "reason": "FailedCreatePodSandBox",
    "message": "no",
    "lastTimestamp": "2023-11-14T22:13:20Z",
}
RUNTIME = {
    "metadata": {"name": "evil", "uid": "r", "resourceVersion": "7"},
    "status": {"handler": "x", "conditions": [{"type": "Healthy", "status": "True"}]},
}
GOOD: dict[str, Any] = {
    "pods": pod_body("evil", claim="evil", pool_uid="uid-5"),
    "sandboxclaims": claim_body("evil", pool="pool", status={"phase": "Bound", "podUID": "x"}),
    "sandboxpools": pool_body("evil", replicas=0, status={"conditions": [{"type": "Ready"}]}),
    "runtimeclasses": runtime_class("evil"),
    "nodes": NODE,
    "events": EVENT,
    "sandboxruntimes": RUNTIME,
}

NASTY_NUMBERS = [10**400, -(10**30), 1e308, True, -1, 2**63]
NASTY_STRINGS = ["", "\ud800", "\x00", "a" * 70_000, "²", "-1", "9" * 5000, "../..", "{}"]
VALUES = st.recursive(
    st.none() | st.sampled_from(NASTY_NUMBERS) | st.sampled_from(NASTY_STRINGS),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
DEPTHS = st.sampled_from([10, 500, 5_000, 100_000])


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an object."""
    yield path
    if isinstance(value, Mapping | list):
        for key in value if isinstance(value, Mapping) else range(len(value)):
            yield from paths(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same with something else in one place."""
    if not path:
        return new
    result = dict(value) if isinstance(value, Mapping) else list(value)
    result[path[0]] = put(value[path[0]], path[1:], new)
    return result


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """The same without one place."""
    if not path:
        return {}
    result = dict(value) if isinstance(value, Mapping) else list(value)
    if len(path) == 1:
        del result[path[0]]
    else:
        result[path[0]] = without(value[path[0]], path[1:])
    return result


@st.composite
def hostile(draw: st.DrawFn, resource: str) -> bytes:
    """One object of a kind, damaged in one place or two, as it stands on the wire."""
    body = GOOD[resource]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(paths(body))))
        body = without(body, place) if draw(st.booleans()) else put(body, place, draw(VALUES))
    raw = json.dumps(body).encode()
    match draw(st.integers(0, 9)):
        case 0:
            raw = raw.replace(b"evil", b"ev\xff\xc3il", draw(st.integers(1, 3)))
        case 1:
            depth = draw(DEPTHS)
            deep = b'{"deep":' + b"[" * depth + b"]" * depth + b","
            raw = raw.replace(b"{", deep, draw(st.integers(1, 3))) if len(raw) > 2 else raw
        case 2:
            raw = raw.replace(b'"evil-uid"', b'"uid-5"').replace(b'"r"', b'"uid-1"')
    return raw


RESOURCES = st.sampled_from(sorted(GOOD))


@settings(max_examples=150, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data(), seed=st.integers(0, 3))
def test_the_operator_goes_on_with_all_others(data: st.DataObject, seed: int) -> None:
    listed = data.draw(st.dictionaries(RESOURCES, st.none(), min_size=1, max_size=3))
    poison = {r: data.draw(hostile(r), label=f"listed {r}") for r in listed}
    watched = data.draw(RESOURCES)
    types = st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "x", None])
    line = b'{"type":%s,"object":%s}' % (
        json.dumps(data.draw(types)).encode(),
        data.draw(hostile(watched)),
    )
    with pytest.MonkeyPatch.context() as patch, World(seed) as world:
        _poison_lists(patch, poison)
        world.make_pool(replicas=1)
        # Pools that exist only on the wire lose their pods to the garbage collector.
        world.watchdog.cause(1000)
        world.run(30.0)
        world._do(_poison_watches, world, watched, line)
        world.run(1.0)
        if not all(map(_can_be_cut, poison.values())):
            # Nobody could tell where the next object begins; once it is gone, all is well again.
            poison.clear()
        world.make_claim("good")
        # A list or watch that the poison has broken comes back by itself.
        world.run(120.0)
        status = (world.claim("good") or {}).get("status", {})
        assert status.get("phase") == "Bound", status


class _List(msgspec.Struct):
    items: list[msgspec.Raw]


def _can_be_cut(raw: bytes) -> bool:
    """Whether a list with this object can be cut into its objects."""
    try:
        msgspec.json.decode(b'{"items":[%s]}' % raw, type=_List)
    except UNREADABLE:
        return False
    return True


def _poison_lists(patch: pytest.MonkeyPatch, poison: Mapping[str, bytes]) -> None:
    sent = SimulatedClient._send

    async def send(self: SimulatedClient, method: str, path: str, *rest: Any) -> bytes:
        answer = await sent(self, method, path, *rest)
        bad = poison.get(path.rpartition("/")[2]) if method == "GET" else None
        if bad is None or b'"items":[' not in answer:
            return answer
        head, _, tail = answer.partition(b'"items":[')
        return head + b'"items":[' + bad + (b"" if tail.startswith(b"]") else b",") + tail

    patch.setattr(SimulatedClient, "_send", send)


def _poison_watches(world: World, resource: str, line: bytes) -> None:
    for stream in world.network.streams:
        if stream.resource == resource:
            stream.tell(line)
