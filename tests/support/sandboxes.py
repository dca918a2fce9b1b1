"""Steps that tests of pools and claims share: make a pool warm, wait for a claim's phase."""

from __future__ import annotations

from typing import Any

from sandboxpool.api import names
from support import invariants, objects
from support.api import Api, condition
from support.waiting import eventually

Object = dict[str, Any]


def gvisor_class(api: Api) -> None:
    """Creates the RuntimeClass gvisor, handler runsc, if it is not there."""
    if api.find("RuntimeClass", "gvisor") is None:
        api.create(objects.runtime_class())


def warm_pool(api: Api, replicas: int = 2, name: str = "pool", **spec: Any) -> Object:
    """Creates a gVisor pool and waits until all its sandboxes are warm."""
    gvisor_class(api)
    pool = api.create(objects.pool(name, replicas=replicas, **spec))
    pool_status(api, warm=replicas, name=name)
    return pool


def pool_status(api: Api, *, name: str = "pool", timeout: float = 20.0, **counts: int) -> Object:
    """Waits until a pool's status has these counts; returns the pool."""
    return eventually(
        lambda: api.get("SandboxPool", name),
        until=lambda pool: all(
            pool.get("status", {}).get(key) == value for key, value in counts.items()
        ),
        message=f"pool {name} has {counts}",
        timeout=timeout,
    )


def wait_for_pool_condition(
    api: Api, type_: str, status: str, reason: str, *, name: str = "pool", timeout: float = 20.0
) -> str:
    """Waits until a pool's condition has this status and reason; returns its message."""

    def found() -> Object | None:
        seen = condition(api.get("SandboxPool", name), type_)
        return seen if seen and (seen["status"], seen["reason"]) == (status, reason) else None

    seen = eventually(
        lambda: found() or _missed(api, name),
        until=lambda value: "missed" not in value,
        message=f"pool {name} says {type_}={status} {reason}",
        timeout=timeout,
    )
    return str(seen["message"])


def _missed(api: Api, name: str) -> Object:
    conditions = api.get("SandboxPool", name).get("status", {}).get("conditions", [])
    return {"missed": [(c["type"], c["status"], c["reason"], c["message"]) for c in conditions]}


def wait_for_runtime_condition(
    api: Api, type_: str, status: str, reason: str, *, name: str = "gvisor", timeout: float = 20.0
) -> Object:
    """Waits until the condition of a SandboxRuntime has this status and reason; returns all of it.

    The result is the object's status, with the condition's message as `said`.
    """

    def found() -> Object:
        seen = api.get("SandboxRuntime", name)
        said = condition(seen, type_)
        return {**seen.get("status", {}), "said": said}

    seen = eventually(
        found,
        until=lambda value: (
            value["said"] is not None
            and (value["said"]["status"], value["said"]["reason"]) == (status, reason)
        ),
        message=f"SandboxRuntime {name} says {type_}={status} {reason}",
        timeout=timeout,
    )
    return {**seen, "said": seen["said"]["message"]}


def phase(api: Api, wanted: str, name: str = "claim", timeout: float = 15.0) -> Object:
    """Waits until a claim is in this phase; returns the claim."""
    return eventually(
        lambda: api.get("SandboxClaim", name),
        until=lambda claim: claim.get("status", {}).get("phase") == wanted,
        message=f"claim {name} is {wanted}",
        timeout=timeout,
    )


def claim_pod(api: Api, name: str = "claim", pool: str = "pool", **spec: Any) -> Object:
    """Creates a claim, waits until it is bound; returns it."""
    api.create(objects.claim(name, pool, **spec))
    return phase(api, "Bound", name)


def bound_reason(claim: Object) -> str:
    """The reason of a claim's condition Bound."""
    found = condition(claim, "Bound")
    assert found is not None, claim.get("status")
    return str(found["reason"])


def live_pods(api: Api) -> list[Object]:
    """The pods that are not on their way out."""
    return [pod for pod in api.list("Pod") if "deletionTimestamp" not in pod["metadata"]]


def quiet(api: Api, *, warm: int = 3, claimed: int = 0) -> None:
    """Waits until all is done, and checks that nothing was lost, doubled or leaked.

    What sets things in motion must have happened before: until then all is quiet, too.
    """

    def counted() -> tuple[int, int]:
        labels = [pod["metadata"]["labels"] for pod in api.list("Pod")]
        taken = sum(names.LABEL_CLAIM_UID in has for has in labels)
        return len(labels) - taken, taken

    eventually(
        counted,
        until=lambda seen: seen == (warm, claimed),
        message=f"{warm} warm and {claimed} claimed pods, and no other",
        timeout=30,
    )
    pool_status(api, warm=warm, claimed=claimed, starting=0, stopping=0, timeout=30)
    invariants.check(api)
    assert counted() == (warm, claimed)
