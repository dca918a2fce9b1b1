"""Classifies the errors with which the API server rejects a pod. Pure.

Built-in admission plugins are recognized by the beginning of their message: each writes its own
text directly after the pod's name. The text of a webhook or a policy comes later in the message.
"""

import re

from sandboxpool.kube.errors import ApiError

# ResourceQuota, and quota webhooks with the same wording. A new quota has no status yet.
_AT_QUOTA = re.compile(r"exceeded quota|^pods \"[^\"]*\" is forbidden: status unknown for quota: ")
# ServiceAccount, Priority and RuntimeClass.
_MISSING = re.compile(
    r"^pods \"[^\"]*\" is forbidden: (?:"
    r"error looking up service account [^ ]+: serviceaccount \"[^\"]*\" not found"
    r"|no PriorityClass with name [^ ]+ was found"
    r"|pod rejected: RuntimeClass \"[^\"]*\" not found)"
)
# Authorization names the resource ("pods"), admission names the pod.
_NOT_ALLOWED = re.compile(r"^pods is forbidden: User ")

NAMESPACE_TERMINATING = "the namespace is being deleted and takes no new pods"


def is_quota_exceeded(error: ApiError) -> bool:
    """Whether a quota rejected the pod; it may fit once another pod ends."""
    return error.status == 403 and _AT_QUOTA.search(error.message) is not None


def is_dependency_missing(error: ApiError) -> bool:
    """Whether an object that the pod refers to does not exist; it may be created later."""
    return error.not_found or (error.status == 403 and _MISSING.match(error.message) is not None)


def is_pod_rejected(error: ApiError) -> bool:
    """Whether admission rejected this pod, as opposed to a server error or missing RBAC rules."""
    if error.status >= 500 or error.status in (401, 404, 408, 409, 429):
        return False
    return not (error.namespace_terminating or is_dependency_missing(error)) and (
        _NOT_ALLOWED.match(error.message) is None
    )
