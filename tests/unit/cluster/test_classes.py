"""From a class's name to its handler, and the classes that exist."""

from typing import Any

import pytest

from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.classes import RuntimeClassStore
from sandboxpool.runtimes.resolve import Runtime, resolve
from support.builders import runtime, runtime_class
from support.lists import replace

CLASSES = {"gvisor": runtime(handler="runsc")}


@pytest.mark.parametrize(
    ("name", "pin", "usable", "reason"),
    [
        ("gvisor", None, True, Reason.RUNTIME_CLASS_FOUND),
        ("gvisor", "runsc", True, Reason.RUNTIME_CLASS_FOUND),
        ("gvisor", "runc", False, Reason.HANDLER_MISMATCH),
        ("kata", None, False, Reason.RUNTIME_CLASS_NOT_FOUND),
        ("kata", "kata", False, Reason.RUNTIME_CLASS_NOT_FOUND),
    ],
)
def test_resolving(name: str, pin: str | None, usable: bool, reason: Reason) -> None:
    resolution = resolve(name, pin, CLASSES)
    assert (resolution.usable, resolution.reason) == (usable, reason)
    assert repr(name) in resolution.message


def test_a_mismatch_names_both_handlers() -> None:
    message = resolve("gvisor", "runc", CLASSES).message
    assert "'runsc'" in message
    assert "'runc'" in message


@pytest.fixture
def classes() -> dict[str, Runtime]:
    return {}


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def store(classes: dict[str, Runtime], changed: list[str]) -> RuntimeClassStore:
    return RuntimeClassStore(classes, changed.append)


def test_only_what_matters_of_a_class_is_a_change(
    store: RuntimeClassStore, changed: list[str]
) -> None:
    store.observe(runtime_class(version=1))
    labelled = runtime_class(version=2)
    labelled["metadata"]["labels"] = {"a": "b"}
    store.observe(labelled)
    assert changed == ["gvisor"]
    store.observe(runtime_class(version=3, handler="kata"))
    assert changed == ["gvisor", "gvisor"]


def test_an_older_state_is_ignored(
    store: RuntimeClassStore, classes: dict[str, Runtime], changed: list[str]
) -> None:
    store.observe(runtime_class(uid="new", version=5))
    store.observe(runtime_class(uid="old", version=3))
    store.observe(runtime_class(uid="old", version=4), deleted=True)
    assert classes["gvisor"].uid == "new"
    assert changed == ["gvisor"]


def test_the_end_of_a_former_class_does_not_end_its_successor(
    store: RuntimeClassStore, classes: dict[str, Runtime]
) -> None:
    store.observe(runtime_class(uid="new", version=5))
    store.observe(runtime_class(uid="old", version=6), deleted=True)
    assert "gvisor" in classes


def test_a_list_replaces_what_was_not_told_since_it_was_asked_for(
    store: RuntimeClassStore, classes: dict[str, Runtime], changed: list[str]
) -> None:
    store.observe(runtime_class("gone", version=3))
    newer = runtime_class("newer", version=12)
    replace(store, [runtime_class("listed", version=4)], "10", lambda: store.observe(newer))
    assert sorted(classes) == ["listed", "newer"]
    assert changed == ["gone", "newer", "listed", "gone"]


def test_a_list_is_the_truth_even_where_versions_count_from_a_backup(
    store: RuntimeClassStore, classes: dict[str, Runtime]
) -> None:
    store.observe(runtime_class(uid="later", version=1000))
    store.observe(runtime_class("made later", version=1001))
    replace(store, [runtime_class(uid="before", version=50)], "60")
    assert {name: known.uid for name, known in classes.items()} == {"gvisor": "before"}
    store.observe(runtime_class(uid="new", version=61))
    store.observe(runtime_class("made later", version=61))
    assert classes["gvisor"].uid == "new"
    assert "made later" in classes


def test_a_class_that_was_deleted_can_come_back(
    store: RuntimeClassStore, classes: dict[str, Runtime]
) -> None:
    store.observe(runtime_class(uid="a", version=1))
    store.observe(runtime_class(uid="a", version=2), deleted=True)
    assert not classes
    store.observe(runtime_class(uid="b", version=3))
    assert classes["gvisor"].uid == "b"


@pytest.mark.parametrize(
    "damage",
    [
        {"handler": None},
        {"handler": 7},
        {"scheduling": {"nodeSelector": ["a"]}},
        {"overhead": "much"},
        {"metadata": {"name": "gvisor"}},
    ],
)
def test_a_damaged_class_is_skipped_and_the_others_are_kept(
    store: RuntimeClassStore, classes: dict[str, Runtime], damage: dict[str, Any]
) -> None:
    replace(store, [runtime_class(version=1) | damage, runtime_class("kata", "kata")], "10")
    assert sorted(classes) == ["kata"]


def test_a_known_class_that_becomes_unreadable_is_not_taken_for_gone(
    store: RuntimeClassStore, classes: dict[str, Runtime]
) -> None:
    store.observe(runtime_class(version=1))
    replace(store, [runtime_class(version=2) | {"handler": None}], "10")
    assert "gvisor" in classes


@pytest.mark.parametrize("version", ["", "²", "x", "-1", "9" * 5000])
def test_a_version_that_is_no_number_is_older_than_all_others(
    store: RuntimeClassStore, classes: dict[str, Runtime], version: str
) -> None:
    body = runtime_class()
    body["metadata"]["resourceVersion"] = version
    replace(store, [body], version)
    assert "gvisor" in classes


@pytest.mark.parametrize("body", [{}, {"metadata": []}, {"metadata": {"name": 1}}, None, "x"])
def test_what_is_no_class_stops_no_other(
    store: RuntimeClassStore, classes: dict[str, Runtime], body: Any
) -> None:
    replace(store, [body, runtime_class()], "5")
    assert list(classes) == ["gvisor"]


def test_a_class_that_does_not_fit_any_more_is_not_gone(
    store: RuntimeClassStore, classes: dict[str, Runtime]
) -> None:
    store.observe(runtime_class())
    replace(store, [{**runtime_class(version=2), "handler": 5}], "5")
    assert list(classes) == ["gvisor"]
