import pytest

from bench.boundfield import BoundField
from bench.load import Subject

BOUND = {
    "status": {
        "phase": "Bound",
        "sandbox": {"podIPs": []},
        "ready": True,
        "conditions": [
            {"type": "Initialized", "status": "False"},
            {"type": "Ready", "status": "True"},
        ],
    }
}


@pytest.mark.parametrize(
    "text",
    [
        "status.phase=Bound",
        ".status.phase=Bound",
        "status.phase",
        "status.ready=true",
        "status.conditions[type=Ready].status=True",
        "status.conditions[type=Ready].status",
        "status.conditions[type=Ready]",
    ],
)
def test_a_field_that_shows_bound(text: str) -> None:
    assert BoundField.parse(text).holds(BOUND)


@pytest.mark.parametrize(
    "text",
    [
        "status.phase=Pending",
        "status.podName",
        "status.sandbox.podIPs",
        "status.phase.deeper",
        "status.conditions[type=Ready].status=False",
        "status.conditions[type=Missing].status=True",
        "status.phase[type=Ready]",
    ],
)
def test_a_field_that_does_not(text: str) -> None:
    assert not BoundField.parse(text).holds(BOUND)


@pytest.mark.parametrize("obj", [{}, {"status": None}, {"status": []}])
def test_an_object_without_a_status_is_not_served(obj: object) -> None:
    assert not BoundField.parse("status.phase=Bound").holds(obj)


@pytest.mark.parametrize("text", ["", "=Bound", "..", "a[b"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no field|is not a path"):
        BoundField.parse(text)


def test_the_collection_follows_from_the_resource() -> None:
    of = Subject.of
    bound = "status.phase=Bound"
    claims = of("sandboxpool.io/v1alpha1/sandboxclaims", "a", {}, bound)
    assert claims.path == "/apis/sandboxpool.io/v1alpha1/namespaces/a/sandboxclaims"
    assert of("v1/pods", "a", {}, bound).path == "/api/v1/namespaces/a/pods"
    assert of("example.com/v1/things", "", {}, bound).path == "/apis/example.com/v1/things"
    with pytest.raises(ValueError, match="group/version/plural"):
        of("pods", "a", {}, bound)
