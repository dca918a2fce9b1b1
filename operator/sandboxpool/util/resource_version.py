"""Resource versions as numbers."""


def parse_resource_version(version: object) -> int:
    """Return a resourceVersion as a number; 0, older than all others, if it is invalid.

    The API guarantees since Kubernetes 1.35 that they are comparable as unsigned 64-bit decimal
    numbers, and all earlier releases conform.
    """
    if isinstance(version, str) and version.isascii() and version.isdigit() and len(version) <= 20:
        return int(version)
    return 0
