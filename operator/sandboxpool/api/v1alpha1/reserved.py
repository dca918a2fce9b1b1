"""Keys of labels and annotations that a claim may never put on its pod."""

from sandboxpool.api import names
from sandboxpool.api.markers import quote

# Metadata that reconfigures a runtime, the kubelet or this operator. A claim's author is not
# trusted with it, whatever a pool allows: a cold or restarted sandbox would be made with it.
#
# Domains whose keys, and those of all their subdomains, are reserved.
RESERVED_DOMAINS = (
    "kubernetes.io",
    "k8s.io",
    names.GROUP,
    "katacontainers.io",
    "gvisor.dev",
    "containerd.io",
    "crio.io",
    "cri-o.io",
)
# The same for domains that are written backwards. Most of these keys have no slash, as many of
# other domains that reconfigure a runtime, and could not come from a claim anyway: what a pool
# allows is a whole domain with its slash. They are named for the few that have one (CRI-O's for a
# single container, wasm's), and so that the API server itself refuses the best-known ones.
RESERVED_REVERSED_DOMAINS = (
    "io.katacontainers",
    "dev.gvisor",
    "io.kubernetes",
    "io.containerd",
    "run.oci",
    "module.wasm.image",
)
_RESERVED_BEGINNINGS = tuple(f"{name}{end}" for name in RESERVED_REVERSED_DOMAINS for end in "./")


def is_reserved_metadata_key(key: str) -> bool:
    """Tell whether a label or annotation may never come from a claim."""
    # Kubernetes takes annotations in upper case too, and a runtime may compare as it likes.
    key = key.lower()
    domain, slash, _ = key.partition("/")
    return key.startswith(_RESERVED_BEGINNINGS) or (
        bool(slash)
        and any(
            domain == reserved or domain.endswith(f".{reserved}") for reserved in RESERVED_DOMAINS
        )
    )


def reserved_key_cel(variable: str) -> str:
    """Write `is_reserved_metadata_key` as a CEL expression.

    Upper case is left to the rules beside it, which refuse it in domains.
    """
    tests = [f"{variable}.startsWith({quote(beginning)})" for beginning in _RESERVED_BEGINNINGS]
    for domain in RESERVED_DOMAINS:
        tests.append(f"{variable}.startsWith({quote(domain + '/')})")
        tests.append(f"{variable}.contains({quote('.' + domain + '/')})")
    return " || ".join(tests)


RESERVED_TEXT = ", ".join(
    [
        *(f"{name}.*" for name in RESERVED_REVERSED_DOMAINS),
        *(f"{domain}/*" for domain in RESERVED_DOMAINS),
    ]
)
