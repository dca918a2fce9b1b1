"""OpenSandbox's own kinds, as minimal CRDs of this project's own."""

from __future__ import annotations

from pathlib import Path

import yaml

from support.api import Api, Objects
from support.crds import apply_crds

CRDS = Path(__file__).with_name("crds.yaml")


def opensandbox_crds() -> Objects:
    """The CRDs, with the constraints that a client of them has to keep to."""
    return list(yaml.safe_load_all(CRDS.read_text()))


def ensure_opensandbox_crds(api: Api) -> None:
    """Creates the CRDs that are not there yet, and waits until they are served."""
    lacking = [
        crd
        for crd in opensandbox_crds()
        if api.find("CustomResourceDefinition", crd["metadata"]["name"]) is None
    ]
    apply_crds(api, lacking)
