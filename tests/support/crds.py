"""The repository's CRDs on a bare API server."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import yaml

from support.api import Api, Objects, is_true
from support.waiting import eventually

CRDS = Path(__file__).resolve().parents[2] / "crds"


def apply_crds(api: Api, crds: Objects | None = None) -> None:
    """Creates the CRDs, or others in their place, and waits until they are served."""
    if crds is None:
        crds = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]
    for crd in crds:
        api.create(crd)
    for crd in crds:
        name = crd["metadata"]["name"]
        eventually(
            partial(api.get, "CustomResourceDefinition", name),
            until=partial(is_true, kind="Established"),
            message=f"CRD {name} is established",
        )
    for crd in crds:
        spec = crd["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        eventually(partial(api.raw, "GET", path), message=f"{path} is served")
