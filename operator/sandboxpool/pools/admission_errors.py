"""Reading why the API server refuses a pod, by the status and by who has refused it. Pure.

An admission plugin that is built in is known by how its sentence begins: right behind the pod's
name stands what nobody but this plugin writes there. The words of webhooks and policies come
later in the sentence, whatever they are.
"""

import re

from sandboxpool.kube.errors import ApiError

# ResourceQuota, and what others say that count in its place. A quota that is new has no status.
_AT_QUOTA = re.compile(r"exceeded quota|^pods \"[^\"]*\" is forbidden: status unknown for quota: ")
# ServiceAccount, Priority and RuntimeClass.
_MISSING = re.compile(
    r"^pods \"[^\"]*\" is forbidden: (?:"
    r"error looking up service account [^ ]+: serviceaccount \"[^\"]*\" not found"
    r"|no PriorityClass with name [^ ]+ was found"
    r"|pod rejected: RuntimeClass \"[^\"]*\" not found)"
)
# Authorization: it speaks of the kind, where admission speaks of the pod.
_NOT_ALLOWED = re.compile(r"^pods is forbidden: User ")

NAMESPACE_TERMINATING = "the namespace is being deleted and takes no new pods"


def is_quota_exceeded(error: ApiError) -> bool:
    """The namespace has no room for the pod now; the end of another one may make some."""
    return error.status == 403 and _AT_QUOTA.search(error.message) is not None


def is_dependency_missing(error: ApiError) -> bool:
    """An object that the pod needs does not exist; it may come in the next moment."""
    return error.not_found or (error.status == 403 and _MISSING.match(error.message) is not None)


def is_pod_rejected(error: ApiError) -> bool:
    """Somebody has looked at this pod and refused it: not the server, nor for our own rights."""
    if error.status >= 500 or error.status in (401, 404, 408, 409, 429):
        return False
    return not (error.namespace_terminating or is_dependency_missing(error)) and (
        _NOT_ALLOWED.match(error.message) is None
    )
