"""Names in the objects of OpenSandbox and in ours that refer to it."""

from sandboxpool.api import names

GROUP = "sandbox.opensandbox.io"
API_VERSION = f"{GROUP}/v1alpha1"
BATCH_SANDBOX_KIND = "BatchSandbox"
BATCH_SANDBOXES = "batchsandboxes"
POOL_KIND = "Pool"
POOLS = "pools"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "sandboxpool"

# On a BatchSandbox: the server reads them. Without a sandbox there are no endpoints, and after a
# loss an empty list.
ANNOTATION_ENDPOINTS = f"{GROUP}/endpoints"
NO_ENDPOINTS = "[]"
ANNOTATION_ALLOC_STATUS = f"{GROUP}/alloc-status"
# The SDK shows annotations with this prefix as `get_info().extensions`.
EXTENSION_PREFIX = "opensandbox.io/extensions."
ANNOTATION_RUNTIME_CLASS = f"{EXTENSION_PREFIX}runtime-class"
ANNOTATION_RUNTIME_HANDLER = f"{EXTENSION_PREFIX}runtime-handler"
ANNOTATION_EVIDENCE = f"{EXTENSION_PREFIX}isolation-evidence"
# On a BatchSandbox that this bridge has served: it is ours also when its pool and claim are gone.
ANNOTATION_SERVED = f"{names.GROUP}/opensandbox"

# What OpenSandbox's own controller leaves on a BatchSandbox that it allocates.
FOREIGN_FINALIZER = f"pool.{GROUP}/pool-allocation"

# What OpenSandbox's images listen on.
EXECUTOR_PORT = 5758
EXECD_PORT = 44772
