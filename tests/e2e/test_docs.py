"""The commands and the code of pages, as they stand there, on the real cluster."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.nodeimage import SAMPLE_IMAGE
from support import Api, eventually, pages
from support.realnodes import GVISOR


@pytest.fixture
def team(
    admin: Api, namespace: str, terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name for the page's namespace."""
    monkeypatch.chdir(tmp_path)
    name = f"{namespace}-docs"
    yield name
    for kind in ("SandboxPool", "SandboxClaim"):
        for obj in admin.list(kind, name):
            admin.delete(kind, obj["metadata"]["name"], name)
    admin.delete("Namespace", name)
    eventually(lambda: not admin.list("Pod", name), message="the pods are gone", timeout=60)


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("client.md", {"sh", "python", "none"}),
        # A `text` is output that is not the same in another cluster.
        ("kubectl-sandboxpool.md", {"sh", "none", "text"}),
    ],
)
def test_every_block_of_the_page_does_what_it_says(
    team: str, name: str, languages: set[str]
) -> None:
    """`test_broken_runtime.py` follows the tutorial."""
    found = pages.blocks(name)
    assert {language for language, _ in found} == languages
    # What differs between the page's cluster and this one.
    here = {"team-a": team, "busybox:1.37": SAMPLE_IMAGE, "gvisor": GVISOR}
    variables: dict[str, object] = {}
    printed = ""
    for language, text in found:
        for there, name in here.items():
            text = text.replace(there, name)
        if language == "none":
            assert printed == text
        elif language == "python":
            printed = _run_python(text, variables)
        elif language == "sh":
            printed = pages.run_shell(text)


def _run_python(code: str, variables: dict[str, object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "<page>", "exec"), variables)  # noqa: S102 - our own page
    return output.getvalue()
