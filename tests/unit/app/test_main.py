"""`python -m sandboxpool`."""

from __future__ import annotations

import runpy
import sys

import pytest

NAMES = ("sandboxpool.__main__", "sandboxpool.app")


def test_without_the_operator_s_packages_it_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name in NAMES or name.startswith(NAMES[1] + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kopf", None)
    with pytest.raises(SystemExit, match=r"'kopf' is missing.*pip install 'sandboxpool\[operator"):
        runpy.run_module("sandboxpool", run_name="__main__")
