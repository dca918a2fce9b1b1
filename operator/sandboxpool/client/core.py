"""What the client with and the client without asyncio have in common."""

from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

from sandboxpool.client import binding, claims, secrets, visible
from sandboxpool.client.api import Api
from sandboxpool.client.commands import Target

OnEmpty = Literal["Wait", "Create", "Fail"]
IsolationProof = Literal["PerNode", "PerSandbox"]


class ClaimOptions(TypedDict, total=False):
    """What a claim can ask for beside its pool.

    Attributes:
        namespace: The pool's namespace; that of the kubeconfig's context, or of the pod that this
            runs in, if unset.
        ttl: Seconds from binding after which the sandbox is deleted, for a process that dies
            before it releases it. An hour if unset; None leaves it to the pool, as `keep` does.
        bind_timeout: Seconds after which a claim without a sandbox fails; 300 if unset.
        on_empty: What to do when no sandbox is warm: `Wait` (the default), `Create` one, `Fail`.
        runtime_class: An assertion: the claim fails where the pool has another RuntimeClass.
        isolation_proof: An assertion: the claim fails where the pool wants less proof.
        config: Text by file name, which the sandbox finds in its configuration directory. It is no
            place for secrets: whoever may read pods reads it.
        wait_for_config: Return only when the sandbox sees its configuration, and raise
            ConfigNotVisible if that takes longer than 30 seconds. The kubelet brings it a moment
            after the binding. The image needs a shell and `cat`.
        secrets: Contents by file name, written into a memory volume of the sandbox.
        secrets_path: The directory for them; the one memory volume of the container if unset.
        pod_labels: Labels for the pod, as far as the pool allows them.
        pod_annotations: Annotations for the pod, as far as the pool allows them.
        labels: Labels of the claim itself.
        annotations: Annotations of the claim itself.
        container: The container to work in; the pod's default one if unset.
        keep: Leave the sandbox when the `with` block ends: its ttl or whoever deletes the claim
            ends it.
        on_change: Called with each state of the claim, as the API server has it, that is seen while
            it waits for its sandbox; `claim_many` does not call it.
    """

    namespace: str | None
    ttl: int | None
    bind_timeout: int | None
    on_empty: OnEmpty | None
    runtime_class: str | None
    isolation_proof: IsolationProof | None
    config: Mapping[str, str] | None
    wait_for_config: bool
    secrets: Mapping[str, bytes | str] | None
    secrets_path: str | None
    pod_labels: Mapping[str, str] | None
    pod_annotations: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    annotations: Mapping[str, str] | None
    container: str | None
    keep: bool
    on_change: Callable[[claims.Object], None] | None


_KNOWN = frozenset(ClaimOptions.__annotations__)


def _checked(options: ClaimOptions) -> None:
    if unknown := sorted(options.keys() - _KNOWN):
        raise TypeError(f"a claim has no option {unknown[0]!r}; it has {', '.join(sorted(_KNOWN))}")


def _manifest(pool: str, name: str | None, options: ClaimOptions) -> claims.Object:
    ttl = None if options.get("keep") else claims.DEFAULT_TTL_SECONDS
    return claims.manifest(
        pool,
        name=name,
        ttl=options.get("ttl", ttl),
        bind_timeout=options.get("bind_timeout"),
        on_empty=options.get("on_empty"),
        runtime_class=options.get("runtime_class"),
        isolation_proof=options.get("isolation_proof"),
        config=options.get("config"),
        pod_labels=options.get("pod_labels"),
        pod_annotations=options.get("pod_annotations"),
        labels=options.get("labels"),
        annotations=options.get("annotations"),
    )


async def claim(api: Api, pool: str, name: str | None, options: ClaimOptions) -> Target:
    """Claim one sandbox."""
    _checked(options)
    namespace = options.get("namespace") or api.settings.namespace
    keep = options.get("keep", False)
    bound = await binding.bind(
        *(api, namespace, _manifest(pool, name, options)),
        keep=keep,
        on_change=options.get("on_change"),
    )
    target = Target(api, bound, options.get("container") or "")
    try:
        await _prepare(target, options)
    except BaseException:
        if not keep:
            await binding.abandon(api, bound)
        raise
    return target


async def claim_many(
    api: Api, pool: str, count: int, within: float, options: ClaimOptions
) -> list[Target]:
    """Claim several sandboxes, or none."""
    _checked(options)
    if count < 1:
        raise ValueError(f"count is {count}: claim at least one sandbox")
    namespace = options.get("namespace") or api.settings.namespace
    manifest = _manifest(pool, None, options)
    bound = await binding.bind_many(api, namespace, count, manifest, within=within)
    targets = [Target(api, one, options.get("container") or "") for one in bound]
    try:
        for target in targets:
            await _prepare(target, options)
    except BaseException:
        for one in bound:
            await binding.abandon(api, one)
        raise
    return targets


async def _prepare(target: Target, options: ClaimOptions) -> None:
    if options.get("wait_for_config"):
        await visible.wait(target)
    if values := options.get("secrets"):
        await secrets.write(target, values, options.get("secrets_path"))
