"""The files that the generator owns: what should be in them, and whether it is."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from crdgen.crd import custom_resource_definition
from sandboxpool.api import names
from sandboxpool.api.v1alpha1 import KINDS

# The chart has its own copies, because Helm does not package what a symbolic link points to outside
# of the chart.
DIRECTORIES = (Path("crds"), Path("charts/sandboxpool/crds"))

HEADER = "# Written by `python -m crdgen` from operator/sandboxpool/api/v1alpha1/. Edit those.\n"


def render() -> dict[str, str]:
    """Return the text of each CRD by file name."""
    return {
        f"{names.GROUP}_{model.resource.plural}.yaml": HEADER
        + yaml.safe_dump(
            custom_resource_definition(model), sort_keys=False, width=100, allow_unicode=True
        )
        for model in KINDS
    }


def write(root: Path, files: Mapping[str, str]) -> None:
    """Make the directories hold exactly these files."""
    for directory in DIRECTORIES:
        target = root / directory
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (target / name).write_text(text, encoding="utf-8")
        for path in _left_over(target, files):
            path.unlink()


def stale(root: Path, files: Mapping[str, str]) -> list[str]:
    """Say which files are missing, differ or are left over, each with its path."""
    problems = []
    for directory in DIRECTORIES:
        target = root / directory
        for name, text in files.items():
            path = target / name
            if not path.is_file():
                problems.append(f"{directory / name}: missing")
            elif path.read_text(encoding="utf-8") != text:
                problems.append(f"{directory / name}: differs from the models")
        problems.extend(
            f"{directory / path.name}: no model makes it" for path in _left_over(target, files)
        )
    return problems


def _left_over(directory: Path, files: Iterable[str]) -> list[Path]:
    return sorted(path for path in directory.glob("*.yaml") if path.name not in set(files))
