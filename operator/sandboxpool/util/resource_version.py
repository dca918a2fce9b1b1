"""Resource versions as numbers."""


def parse_resource_version(version: object) -> int:
    """Give the number that a resourceVersion is; 0, older than all others, if it is none.

    They are comparable as numbers, by the API's own promise since Kubernetes 1.35 and by what every
    released server does: an unsigned integer of 64 bits, in decimal.
    """
    if isinstance(version, str) and version.isascii() and version.isdigit() and len(version) <= 20:
        return int(version)
    return 0
