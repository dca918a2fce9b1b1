"""What is sent to the API server, and read from it, on account of one claim.

A conditional write is never repeated blindly, and what is final is asked for. Nothing is remembered
here.
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
    """What became of the write of a claim's status."""

    DONE = "done"
    GONE = "gone"
    CHANGED = "changed"
    """The claim is not as it was seen. The watch brings it as it is, and has it looked at again."""


class ClaimRequests:
    """The requests, with the answers that they may get."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def bind_pod(
        self, claim: SandboxClaim, candidate: Candidate, known: Pod
    ) -> tuple[Pod | None, KubeError | None]:
        """Send write 1; return the pod as the server has it then, and why it did not succeed."""
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
                # A policy refuses what this claim puts on its pod: no other pod would do better.
                raise
            failure: KubeError = error
        except UnknownOutcomeError as error:
            logger.warning("binding: %s", error, extra=about(claim).log)
            failure = error
        return await self.read_back(claim, path, candidate, failure), failure

    async def read_back(
        self, claim: SandboxClaim, path: str, candidate: Candidate, failure: KubeError
    ) -> Pod | None:
        """After a conflict or an unknown outcome only the pod itself can say whose it is.

        Return it as it is now; None if it is gone. Where it is nobody's, as it was, the write may
        still be on its way: pod and claim stay together, as another pod would be the claim's
        second one then.

        Raises:
            KubeError: the failure, where it may still turn out to be a success.
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
        raise UnknownOutcomeError(f"{path}: nobody can say whether it was given to {claim.key}")

    async def write_status(
        self, claim: SandboxClaim, status: SandboxClaimStatus
    ) -> tuple[WriteOutcome, str]:
        """Write a claim's status, if it is as it was seen: nothing newer is ever overwritten.

        Return also the version at which the claim is so, or is otherwise; none if it is gone.
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
                    # A failed test and an invalid status look alike: ask.
                    now = await self.read(*claim.key, claim.uid)
                    if now is None:
                        return WriteOutcome.GONE, ""
                    found = now.metadata.resourceVersion
                    if now.status == status:
                        # By an attempt whose answer was lost.
                        return WriteOutcome.DONE, found
                    if found == version:
                        raise
                    waits = now.status.phase in (None, ClaimPhase.PENDING)
                    if status.phase is not ClaimPhase.BOUND or not waits:
                        return WriteOutcome.CHANGED, found
                    if attempt == STATUS_ATTEMPTS:
                        message = f"{path}: changed {attempt} times while it was being told"
                        raise KubeError(message) from error
                    # Whatever has changed, it has its pod already.
                    version = found
                    continue
                if error.status < 500:
                    raise
                failure: Exception = error
            except UnknownOutcomeError as error:
                # Guarded by the version and the same every time, so it may be sent again.
                failure = error
            else:
                return WriteOutcome.DONE, _decode_written(answer).metadata.resourceVersion
            if attempt == STATUS_ATTEMPTS:
                raise failure
            await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def delete_pod(self, pod: Pod, why: str) -> None:
        """Delete exactly this pod, if it still carries what we saw on it."""
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
            # A conflict says that it has changed since: the watch brings the new state, and with
            # it this claim again.
            if not (error.conflict or error.not_found):
                raise

    async def delete_claim(self, claim: SandboxClaim) -> None:
        """Delete this very claim."""
        try:
            await self._client.delete(path_of(claim), uid=claim.uid)
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise

    async def find_pod(self, claim: SandboxClaim) -> Pod | None:
        """A pod that the watch no longer shows may only have lost its labels: ask the server."""
        path = resource_path(
            "v1", "pods", claim.metadata.namespace, claim.status.podName or "unknown"
        )
        answer = await self._client.find(path)
        pod = _decode_pod(answer) if answer is not None else None
        return pod if pod is not None and pod.metadata.uid == claim.status.podUID else None

    async def is_claim_current(self, claim: SandboxClaim) -> bool:
        """Whether the server has the claim as the cache shows it: no other process has told it."""
        live = await self.read(*claim.key, claim.uid)
        version = claim.metadata.resourceVersion
        return live is not None and live.metadata.resourceVersion == version

    async def read(self, namespace: str, name: str, uid: str) -> SandboxClaim | None:
        """This very claim by a live read; None if it is gone."""
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
    """The claim, for events and logs."""
    return ObjectReference(
        names.API_VERSION,
        names.CLAIM_KIND,
        claim.metadata.namespace,
        claim.metadata.name,
        claim.uid,
    )
