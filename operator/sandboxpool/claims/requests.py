"""The requests to the API server that concern one claim.

A conditional write whose outcome is unknown is never repeated before the object was read again.
"""

import asyncio
import logging
from enum import Enum

import msgspec

from sandboxpool.allocation.allocator import Candidate
from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import ClaimPhase, SandboxClaim, SandboxClaimStatus
from sandboxpool.claims import decide
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.sandboxes.template import claim_metadata
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

READ_BACK_ATTEMPTS = 8
STATUS_ATTEMPTS = 4


class _Version(msgspec.Struct):
    resourceVersion: str = ""


class _WriteResponse(msgspec.Struct):
    metadata: _Version


_decode_pod = msgspec.json.Decoder(Pod).decode
_decode_claim = msgspec.json.Decoder(SandboxClaim).decode
_decode_written = msgspec.json.Decoder(_WriteResponse).decode


class WriteOutcome(Enum):
    """The outcome of a write of a claim's status."""

    DONE = "done"
    GONE = "gone"
    CHANGED = "changed"
    """The claim has changed since it was read: the watch will deliver it and enqueue it again."""


class ClaimRequests:
    """Sends the requests and interprets the responses; keeps no state."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def bind_pod(
        self, claim: SandboxClaim, candidate: Candidate, known: Pod
    ) -> tuple[Pod | None, KubeError | None]:
        """Make the claim the owner of a pod; return the resulting pod and the failure, if any."""
        body = {
            "metadata": {
                "resourceVersion": candidate.version,
                **claim_metadata(
                    decide.reference(claim),
                    labels=known.metadata.labels,
                    annotations=known.metadata.annotations,
                ),
            }
        }
        path = resource_path("v1", "pods", candidate.namespace, candidate.name)
        try:
            return _decode_pod(await self._client.merge_patch(path, body)), None
        except ApiError as error:
            if error.not_found:
                return None, error
            if error.status < 500 and not error.conflict:
                # An admission policy refuses the claim's metadata: it would on any other pod, too.
                raise
            failure: KubeError = error
        except UnknownOutcomeError as error:
            logger.warning(
                "the outcome of the binding is unknown, the pod is read again: %s",
                error,
                extra=about(claim).log,
            )
            failure = error
        return await self.read_back(claim, path, candidate, failure), failure

    async def read_back(
        self, claim: SandboxClaim, path: str, candidate: Candidate, failure: KubeError
    ) -> Pod | None:
        """Read the pod after a conflict or an unknown outcome; None if it was deleted.

        If the pod has not changed, the write may still arrive. The failure is raised then, so that
        the claim keeps its reservation: another pod could become the claim's second one.

        Raises:
            KubeError: the failure, where the write may still succeed.
        """
        for attempt in range(READ_BACK_ATTEMPTS):
            try:
                pod = _decode_pod(await self._client.get(path))
            except ApiError as error:
                if error.not_found:
                    return None
            except UnknownOutcomeError:
                pass
            else:
                if pod.metadata.uid != candidate.uid:
                    return None
                conflict = isinstance(failure, ApiError) and failure.conflict
                if pod.metadata.resourceVersion == candidate.version and not conflict:
                    raise failure
                return pod
            await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
        raise UnknownOutcomeError(
            f"{path}: cannot be read after {READ_BACK_ATTEMPTS} tries; it may be bound to the "
            f"claim {'/'.join(claim.key)}, so both are retried together"
        )

    async def write_status(
        self, claim: SandboxClaim, status: SandboxClaimStatus
    ) -> tuple[WriteOutcome, str]:
        """Write a claim's status, on condition of the claim's version.

        Return also the claim's resulting version, or that of the newer state that was found; an
        empty one if the claim was deleted.
        """
        path = path_of(claim)
        version = claim.metadata.resourceVersion
        for attempt in range(1, STATUS_ATTEMPTS + 1):
            try:
                answer = await self._client.replace_status(
                    path, claim.uid, status.to_wire(), version=version
                )
            except ApiError as error:
                if error.not_found:
                    return WriteOutcome.GONE, ""
                if error.status == 422:
                    # A failed test of the version and an invalid status both give a 422.
                    now = await self.read(*claim.key, claim.uid)
                    if now is None:
                        return WriteOutcome.GONE, ""
                    found = now.metadata.resourceVersion
                    if now.status == status:
                        # Written by an attempt whose response was lost.
                        return WriteOutcome.DONE, found
                    if found == version:
                        raise
                    waits = now.status.phase in (None, ClaimPhase.PENDING)
                    if status.phase is not ClaimPhase.BOUND or not waits:
                        return WriteOutcome.CHANGED, found
                    if attempt == STATUS_ATTEMPTS:
                        message = (
                            f"{path}: the claim changed {attempt} times while its status was being "
                            "written"
                        )
                        raise KubeError(message) from error
                    # Whatever has changed, the claim owns its pod already.
                    version = found
                    continue
                if error.status < 500:
                    raise
                failure: Exception = error
            except UnknownOutcomeError as error:
                # On condition of the version and idempotent, so it may be sent again.
                failure = error
            else:
                return WriteOutcome.DONE, _decode_written(answer).metadata.resourceVersion
            if attempt == STATUS_ATTEMPTS:
                raise failure
            await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def delete_pod(self, pod: Pod, why: str) -> None:
        """Delete this pod, on condition of its uid and version."""
        if pod.metadata.deletionTimestamp is not None:
            return
        about = ObjectReference(
            "v1", "Pod", pod.metadata.namespace, pod.metadata.name, pod.metadata.uid
        )
        logger.info("deleting the pod: %s", why, extra=about.log)
        try:
            await self._client.delete(
                resource_path("v1", "pods", pod.metadata.namespace, pod.metadata.name),
                uid=pod.metadata.uid,
                resource_version=pod.metadata.resourceVersion,
            )
        except ApiError as error:
            # After a conflict, the watch delivers the pod's new state and enqueues its claim.
            if not (error.conflict or error.not_found):
                raise

    async def delete_claim(self, claim: SandboxClaim) -> None:
        """Delete this claim, on condition of its uid."""
        try:
            await self._client.delete(path_of(claim), uid=claim.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise

    async def find_pod(self, claim: SandboxClaim) -> Pod | None:
        """The claim's pod, read from the API server: the watch does not show one without labels."""
        path = resource_path(
            "v1", "pods", claim.metadata.namespace, claim.status.podName or "unknown"
        )
        answer = await self._client.find(path)
        pod = _decode_pod(answer) if answer is not None else None
        return pod if pod is not None and pod.metadata.uid == claim.status.podUID else None

    async def is_claim_current(self, claim: SandboxClaim) -> bool:
        """Whether the API server has the claim in the version that the cache has."""
        live = await self.read(*claim.key, claim.uid)
        version = claim.metadata.resourceVersion
        return live is not None and live.metadata.resourceVersion == version

    async def read(self, namespace: str, name: str, uid: str) -> SandboxClaim | None:
        """The claim with this uid, read from the API server; None if it was deleted."""
        path = resource_path(names.API_VERSION, names.CLAIMS, namespace, name)
        answer = await self._client.find(path)
        claim = _decode_claim(answer) if answer is not None else None
        return claim if claim is not None and claim.uid == uid else None


def path_of(claim: SandboxClaim) -> str:
    """The URL path of a claim."""
    return resource_path(
        names.API_VERSION, names.CLAIMS, claim.metadata.namespace, claim.metadata.name
    )


def about(claim: SandboxClaim) -> ObjectReference:
    """The reference to the claim, for events and logs."""
    return ObjectReference(
        names.API_VERSION,
        names.CLAIM_KIND,
        claim.metadata.namespace,
        claim.metadata.name,
        claim.uid,
    )
