"""`python -m sandboxpool`, and the bridge's `python -m sandboxpool.opensandbox`."""

import subprocess
import sys

import pytest

# A process of its own: modules that are imported anew are others than those that tests have.
WITHOUT_KOPF = """\
import runpy, sys
sys.modules["kopf"] = None
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["sandboxpool", "sandboxpool.opensandbox"])
def test_without_the_operator_s_packages_it_says_how_to_install_them(module: str) -> None:
    code = WITHOUT_KOPF.format(module=module)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert ended.returncode == 1
    assert "'kopf' is missing" in ended.stderr
    assert "pip install 'sandboxpool[operator]'" in ended.stderr
    assert "Traceback" not in ended.stderr
