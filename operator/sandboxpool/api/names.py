"""Names that stand on Kubernetes objects: group, labels, annotations.

Labels are an index for selectors and people. What binds a pod to its pool or claim is the owner
reference and the uid in it; a stripped label must not change who owns what.
"""

GROUP = "sandboxpool.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

POOL_KIND = "SandboxPool"
CLAIM_KIND = "SandboxClaim"
RUNTIME_KIND = "SandboxRuntime"
POOLS = "sandboxpools"
CLAIMS = "sandboxclaims"
RUNTIMES = "sandboxruntimes"

LABEL_POOL = f"{GROUP}/pool"
LABEL_POOL_UID = f"{GROUP}/pool-uid"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_CLAIM = f"{GROUP}/claim"
LABEL_CLAIM_UID = f"{GROUP}/claim-uid"

ANNOTATION_RUNTIME_UID = f"{GROUP}/runtime-class-uid"
ANNOTATION_HANDLER = f"{GROUP}/handler"
ANNOTATION_SOURCE = f"{GROUP}/source"
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
ANNOTATION_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"

# `kubectl get` of it lists all kinds. kubectl looks for categories before resources, so that it
# must be no name of a kind, of ours or anybody else's.
CATEGORY = "sandboxpool-io"

HOSTNAME_LABEL = "kubernetes.io/hostname"
OS_LABEL = "kubernetes.io/os"
# Labels of nodes that are not to be used, for a handler or by a pool.
EXCLUSION_PREFIX = f"excluded.{GROUP}/"

# What a label's value can hold; names of pools and claims become label values.
MAX_LABEL_VALUE = 63
# A pod is named after its pool, and its name is its hostname, which holds 63 characters.
POD_SUFFIX_LENGTH = 10
MAX_POOL_NAME = 63 - 1 - POD_SUFFIX_LENGTH
