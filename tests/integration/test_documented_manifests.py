"""Every manifest in the documents is one that the API server accepts, with all its rules."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from support import Api
from support.documents import Block, is_values, manifests, yaml_blocks

BLOCKS = list(yaml_blocks())
# Kinds of others, whose CRDs this API server does not have.
FOREIGN = ("argoproj.io/",)


@pytest.mark.parametrize("block", [b for b in BLOCKS if manifests(b)], ids=str)
def test_the_manifests_of_a_document_are_accepted(block: Block, api: Api, namespace: str) -> None:
    for manifest in manifests(block):
        if manifest["apiVersion"].startswith(FOREIGN):
            continue
        if "namespace" in manifest["metadata"]:
            manifest["metadata"]["namespace"] = namespace
        api.create(manifest, dryRun="All", fieldValidation="Strict")


def test_what_is_no_manifest_is_named_as_what_it_is() -> None:
    """Else a manifest that lost its `kind` would not be looked at."""
    parts: dict[str, list[Any]] = {
        str(block): list(_keys(block))
        for block in BLOCKS
        if not manifests(block) and not is_values(block)
    }
    assert [place for place, keys in parts.items() if keys != ["spec"]] == []
    assert sum(bool(manifests(block)) for block in BLOCKS) > 15


def _keys(block: Block) -> list[str]:
    loaded = yaml.safe_load(block.text)
    return list(loaded) if isinstance(loaded, dict) else []
