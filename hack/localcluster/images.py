"""Images: from the engine into the nodes, and the operator's own."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localcluster import cache, kindcluster, nodeimage, paths, progress
from localcluster import engine as engines
from localcluster.engine import Engine

OPERATOR_IMAGE = "localhost/sandboxpool:dev"
PROBE_IMAGE = "localhost/sandboxpool-probe:dev"
CONTENT_LABEL = "sandboxpool.io/content"
LOAD_SECONDS = 300
BUILD_SECONDS = 900
DOWNLOAD_SECONDS = 900
# Debian bookworm, the base used where nothing can be pulled.
BASE_PYTHON = "3.11"
BASE_GLIBC_MINOR = 36


def current_engine() -> Engine:
    """Return the engine of the cluster that is up.

    Raises:
        StepError: None is up.
    """
    engine = engines.current()
    if engine is None:
        raise progress.StepError("images", "no cluster is up: `python -m localcluster up`")
    return engine


def load_image(tag: str) -> None:
    """Put an image of the engine into all nodes that do not have it in this version.

    Raises:
        StepError: The engine has no such image, or a node did not take it.
    """
    engine = current_engine()
    if not engine.has_image(tag):
        raise progress.StepError("load image", f"the engine has no image {tag}")
    wanted = engine.docker("image", "inspect", "-f", "{{.Id}}", tag).strip()
    lacking = [node for node in kindcluster.node_names() if _id_on(engine, node, tag) != wanted]
    if not lacking:
        return
    with (
        progress.step(f"load {tag}") as step,
        tempfile.TemporaryDirectory(prefix="localcluster-load-") as scratch,
        ThreadPoolExecutor(max_workers=len(lacking)) as pool,
    ):
        tar = Path(scratch) / "image.tar"
        engine.docker("save", "-o", str(tar), tag, timeout=LOAD_SECONDS, log=step.log)

        def load(node: str) -> None:
            engine.docker(
                *("exec", "-i", node, "ctr", "-n", "k8s.io", "images", "import", "--local", "-"),
                timeout=LOAD_SECONDS,
                log=step.log,
                stdin_file=tar,
            )

        for future in [pool.submit(load, node) for node in lacking]:
            future.result()


def _id_on(engine: Engine, node: str, tag: str) -> str:
    command = ("crictl", "inspecti", "-o", "go-template", "--template", "{{.status.id}}", tag)
    return engine.docker("exec", node, *command, check=False).strip()


def load_sample_image() -> str:
    """Put the image of the sample sandboxes into the nodes and return its tag.

    A node image made here has it already; for the stock one it is built from a public image.
    """
    engine, tag = current_engine(), nodeimage.SAMPLE_IMAGE
    if engine.owned:
        return tag
    if not engine.has_image(tag):
        with progress.step("build the sample image") as step:
            dockerfile = 'FROM busybox:1.37\nCMD ["/bin/sleep", "infinity"]\n'
            engine.docker(
                "build", "-t", tag, "-", stdin=dockerfile, timeout=BUILD_SECONDS, log=step.log
            )
    load_image(tag)
    return tag


def build_operator_image() -> str:
    """Build the operator's image and that of its probes, load both into all nodes.

    Returns the operator's tag.

    Nothing is built when the inputs have not changed, and nothing loaded where it is already.
    """
    engine = current_engine()
    inputs = [paths.REPOSITORY / name for name in ("Dockerfile", "requirements/runtime.txt")]
    inputs.append(paths.REPOSITORY / "operator")
    base = nodeimage.base_image(engine) if engine.owned else ""
    key = cache.digest(cache.tree_digest(inputs, base=paths.REPOSITORY), base)
    if any(content_of(engine, image) != key for image in (OPERATOR_IMAGE, PROBE_IMAGE)):
        with cache.lock(paths.state_dir() / "image.lock", timeout=BUILD_SECONDS):
            _build(engine, base, key)
    load_image(OPERATOR_IMAGE)
    load_image(PROBE_IMAGE)
    return OPERATOR_IMAGE


def content_of(engine: Engine, tag: str) -> str:
    """Return what was noted of an image's inputs when it was built; empty if there is none."""
    form = f'{{{{index .Config.Labels "{CONTENT_LABEL}"}}}}'
    return engine.docker("image", "inspect", "-f", form, tag, check=False).strip()


def _build(engine: Engine, base: str, key: str) -> None:
    requirements = paths.REPOSITORY / "requirements/runtime.txt"
    with (
        progress.step("build the operator's images") as step,
        tempfile.TemporaryDirectory(prefix="localcluster-image-") as scratch,
    ):
        context = Path(scratch)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copy(paths.REPOSITORY / "Dockerfile", context)
        (context / "requirements").mkdir()
        shutil.copy(requirements, context / "requirements")
        shutil.copytree(paths.REPOSITORY / "operator", context / "operator", ignore=ignored)
        targets = {"": OPERATOR_IMAGE, "probe": PROBE_IMAGE}
        build_targets(engine, step, context, base, requirements, key, targets)


def build_targets(
    engine: Engine,
    step: progress.Step,
    context: Path,
    base: str,
    requirements: Path,
    key: str,
    targets: Mapping[str, str],
) -> None:
    """Build images of a Dockerfile whose first stage installs locked requirements.

    Args:
        engine: Where.
        step: What this belongs to.
        context: The directory of the Dockerfile; wheels are put there where nothing can be pulled.
        base: The base image made here; empty for the Dockerfile's own.
        requirements: What the wheels are of.
        key: What is noted of the inputs, for `content_of`.
        targets: The tags by the Dockerfile's stages; empty for the last.
    """
    options = ["--label", f"{CONTENT_LABEL}={key}"]
    if base:
        shutil.copytree(_wheels(step, requirements), context / "wheels")
        options += ["--network=none", "--build-arg", f"BASE={base}"]
        options += ["--build-arg", "PIP_NO_INDEX=1"]
    for target, tag in targets.items():
        chosen = ("--target", target) if target else ()
        engine.docker(
            *("build", "-t", tag, *chosen, *options, str(context)),
            timeout=BUILD_SECONDS,
            log=step.log,
        )


def _wheels(step: progress.Step, requirements: Path) -> Path:
    """Return a directory of the wheels that an image needs, fetched as this machine fetches.

    A build has neither the machine's certificates nor its index settings; pip out here has both.
    """
    # pip judges markers by the Python that it runs with, and the base's may be an older 3.11. One
    # wheel too many does no harm.
    text = re.sub(r" ; python_full_version < '3\.\d+\.\d+'", "", requirements.read_text())
    key = cache.digest(text, BASE_PYTHON, str(BASE_GLIBC_MINOR))
    target = paths.cache_dir() / "wheels" / key
    if target.exists():
        return target
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(BASE_GLIBC_MINOR, 16, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(text)
        step.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
                *("--require-hashes", "--python-version", BASE_PYTHON, "--implementation", "cp"),
                *(word for name in platforms for word in ("--platform", name)),
                *("--dest", f"{scratch}/wheels", "-r", str(wanted)),
            ],
            timeout=DOWNLOAD_SECONDS,
        )
        cache.publish(Path(scratch) / "wheels", target)
    return target
