"""The files that the generator owns: what should be in them, and whether it is."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from crdgen.crd import custom_resource_definition
from sandboxpool.api import names
from sandboxpool.api.v1alpha1 import KINDS

PLAIN = Path("crds")
CHART = Path("charts/sandboxpool/templates/crds")
DIRECTORIES = (PLAIN, CHART)

HEADER = "# Written by `python -m crdgen` from operator/sandboxpool/api/v1alpha1/. Edit those.\n"
# Without it `helm uninstall`, and an upgrade or rollback to a chart without the CRD, would delete
# the CRD and with it all pools and claims.
KEEP = {"helm.sh/resource-policy": "keep"}
# What a template's own action may stand for in YAML, until it is put in.
_LABELS = "LABELS"
_LABELS_ACTION = '\n    {{- include "sandboxpool.labels" . | nindent 4 }}'


def render() -> dict[Path, str]:
    """Return the text of each file by its path in the repository."""
    files = {}
    for model in KINDS:
        name = f"{names.GROUP}_{model.resource.plural}.yaml"
        crd = custom_resource_definition(model)
        files[PLAIN / name] = HEADER + _dump(crd)
        files[CHART / name] = template(crd)
    return files


def template(crd: Mapping[str, Any]) -> str:
    """Return a CRD as a template of the chart, with the chart's labels."""
    metadata = crd["metadata"]
    annotations = {**metadata["annotations"], **KEEP}
    metadata = {**metadata, "annotations": annotations, "labels": _LABELS}
    # Helm would take braces in a description or a CEL rule for an action.
    text = _dump({**crd, "metadata": metadata}).replace("{{", '{{ "{{" }}')
    text = text.replace(f"  labels: {_LABELS}\n", f"  labels:{_LABELS_ACTION}\n", 1)
    return f"{HEADER}{{{{- if .Values.crds.install }}}}\n{text}{{{{- end }}}}\n"


def write(root: Path, files: Mapping[Path, str]) -> None:
    """Make the directories hold exactly these files."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in _left_over(root, files):
        (root / path).unlink()


def stale(root: Path, files: Mapping[Path, str]) -> list[str]:
    """Say which files are missing, differ or are left over, each with its path."""
    problems = []
    for path, text in files.items():
        target = root / path
        if not target.is_file():
            problems.append(f"{path}: missing")
        elif target.read_text(encoding="utf-8") != text:
            problems.append(f"{path}: differs from the models")
    problems.extend(f"{path}: no model makes it" for path in _left_over(root, files))
    return problems


def _dump(crd: Mapping[str, Any]) -> str:
    return yaml.safe_dump(crd, sort_keys=False, width=100, allow_unicode=True)


def _left_over(root: Path, files: Iterable[Path]) -> list[Path]:
    expected = set(files)
    found = (path for folder in DIRECTORIES for path in (root / folder).glob("*.yaml"))
    return sorted(path for path in (p.relative_to(root) for p in found) if path not in expected)
