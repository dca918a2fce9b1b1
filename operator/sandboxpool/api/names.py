"""Names in Kubernetes objects: API group, labels, annotations.

Labels are for selectors and people. A pod belongs to its pool or claim by the owner reference and
its uid; removing a label must not change the owner.
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

# On the probe pods of a release that does not have the default name.
LABEL_RELEASE = f"{GROUP}/release"
# The name of the Lease and of the records of nodes, unless a release has its own.
DEFAULT_RELEASE = "sandboxpool"

ANNOTATION_RUNTIME_UID = f"{GROUP}/runtime-class-uid"
ANNOTATION_HANDLER = f"{GROUP}/handler"
ANNOTATION_SOURCE = f"{GROUP}/source"
# The configuration of the pod's claim, and the directory in which its containers find it.
ANNOTATION_CONFIG = f"{GROUP}/config"
ANNOTATION_CONFIG_PATH = f"{GROUP}/config-path"
# On CRDs: the version of the operator that they were generated with.
ANNOTATION_VERSION = f"{GROUP}/version"
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
ANNOTATION_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"

# `kubectl get sandboxpool-io` lists all kinds. kubectl looks up categories before resources, so the
# category must not be the name of any resource.
CATEGORY = "sandboxpool-io"

HOSTNAME_LABEL = "kubernetes.io/hostname"
OS_LABEL = "kubernetes.io/os"
# Labels of nodes that are excluded for a handler or for a pool.
EXCLUSION_PREFIX = f"excluded.{GROUP}/"

# The limit of label values; names of pools and claims become label values.
MAX_LABEL_VALUE = 63
# A pod is named after its pool, and its name is its hostname, which is limited to 63 characters.
POD_SUFFIX_LENGTH = 10
MAX_POOL_NAME = 63 - 1 - POD_SUFFIX_LENGTH
