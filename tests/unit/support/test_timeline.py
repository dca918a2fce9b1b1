"""The judge of histories sees what is wrong, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.api import names
from support import timeline
from support.history import Change

Object = dict[str, Any]


class Writer:
    """Writes a history, one change after the other."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._versions = itertools.count(1)

    def put(self, kind: str, obj: Object, *, deleted: bool = False) -> None:
        self.changes.append(Change(next(self._versions), kind, deleted, obj))

    def pool(self, ceiling: int | None = None) -> None:
        spec = {} if ceiling is None else {"maxSandboxes": ceiling}
        self.put("SandboxPool", {"metadata": meta("pool"), "spec": spec})

    def pod(
        self,
        name: str,
        claim: str | None = None,
        *,
        owned: bool = True,
        going: bool = False,
        deleted: bool = False,
    ) -> None:
        metadata: Object = meta(name, going=going)
        metadata["labels"] = {names.LABEL_POOL_UID: "pool-uid"}
        kind, owner = (names.POOL_KIND, "pool") if claim is None else (names.CLAIM_KIND, claim)
        if claim is not None:
            metadata["labels"][names.LABEL_CLAIM_UID] = f"{claim}-uid"
        if owned:
            metadata["ownerReferences"] = [
                {"kind": kind, "name": owner, "uid": f"{owner}-uid", "controller": True}
            ]
        self.put("Pod", {"metadata": metadata, "status": {"phase": "Running"}}, deleted=deleted)

    def claim(
        self, name: str, phase: str = "", pod: str | None = None, *, deleted: bool = False
    ) -> None:
        status = {"phase": phase, **({"podUID": f"{pod}-uid"} if pod else {})}
        self.put("SandboxClaim", {"metadata": meta(name), "status": status}, deleted=deleted)

    def bind(self, claim: str, pod: str) -> None:
        self.claim(claim)
        self.pod(pod)
        self.pod(pod, claim)
        self.claim(claim, "Bound", pod)


def meta(name: str, *, going: bool = False) -> Object:
    end = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if going else {}
    return {"namespace": "test", "name": name, "uid": f"{name}-uid", **end}


def taken_over(w: Writer) -> None:
    w.bind("a", "one")
    w.pod("one", "b")


def two_pods(w: Writer) -> None:
    w.bind("a", "one")
    w.pod("two", "a")


def two_pods_one_after_the_other(w: Writer) -> None:
    w.claim("a")
    w.pod("one", "a")
    w.pod("one", "a", going=True)
    w.pod("two", "a")
    w.claim("a", "Bound", "two")


def another_pod(w: Writer) -> None:
    w.bind("a", "one")
    w.claim("a", "Bound", "two")


def somebody_elses(w: Writer) -> None:
    w.pod("one", "b")
    w.claim("a", "Bound", "one")


def somebody_elses_and_gone(w: Writer) -> None:
    w.pod("one", "b")
    w.pod("one", "b", deleted=True)
    w.claim("a", "Bound", "one")


def unbound_again(w: Writer) -> None:
    w.bind("a", "one")
    w.claim("a", "Pending")


def deleted_under_its_claim(w: Writer) -> None:
    w.bind("a", "one")
    w.pod("one", "a", going=True)


def deleted_at_once_under_its_claim(w: Writer) -> None:
    w.bind("a", "one")
    w.pod("one", "a", deleted=True)


def deleted_after_its_claim(w: Writer) -> None:
    w.bind("a", "one")
    w.claim("a", "Bound", "one", deleted=True)
    w.pod("one", "a", going=True)
    w.pod("one", "a", going=True, deleted=True)


def deleted_when_it_had_expired(w: Writer) -> None:
    w.bind("a", "one")
    w.claim("a", "Expired", "one")
    w.pod("one", "a", deleted=True)


def lost_alive(w: Writer) -> None:
    w.bind("a", "one")
    w.claim("a", "Lost", "one")


def over_the_ceiling(w: Writer) -> None:
    w.pool(2)
    w.pod("one")
    w.pod("two", going=True)
    w.pod("three")


def below_the_ceiling(w: Writer) -> None:
    w.pool(2)
    w.pod("one")
    w.pod("two")
    w.pod("two", deleted=True)
    w.pod("three")


def unowned(w: Writer) -> None:
    w.pod("one", owned=False)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (taken_over, "went from claim uid a-uid to b-uid"),
        (two_pods, "has 2 pods: test/one, test/two"),
        (another_pod, "was given another pod"),
        (somebody_elses, "was bound to a pod not its own"),
        (somebody_elses_and_gone, "was bound to a pod not its own"),
        (unbound_again, "was bound and is not any more"),
        (deleted_under_its_claim, "was deleted under its claim"),
        (deleted_at_once_under_its_claim, "was deleted under its claim"),
        (lost_alive, "is Lost, and its pod lives"),
        (over_the_ceiling, "test/three is number 3, over maxSandboxes"),
        (unowned, "has no single owner"),
        (two_pods_one_after_the_other, None),
        (deleted_after_its_claim, None),
        (deleted_when_it_had_expired, None),
        (below_the_ceiling, None),
    ],
)
def test_it_finds_what_is_wrong(write: Callable[[Writer], None], text: str | None) -> None:
    writer = Writer()
    write(writer)
    found = timeline.judge(writer.changes)
    assert len(found) == (text is not None), found
    assert text is None or text in found[0]


def test_changes_are_judged_in_the_order_of_their_versions() -> None:
    writer = Writer()
    writer.bind("a", "one")
    assert timeline.judge(reversed(writer.changes)) == []


def test_what_the_test_did_itself_is_excused() -> None:
    writer = Writer()
    deleted_under_its_claim(writer)
    assert timeline.judge(writer.changes, {"one-uid"}) == []
