"""The client binaries that the cluster is worked with."""

from __future__ import annotations

from pathlib import Path

from localcluster import builds


def path(name: str) -> Path:
    """Return the path of a built binary such as kubectl, helm or kind, building it if need be."""
    return builds.ensure([name])[name]
