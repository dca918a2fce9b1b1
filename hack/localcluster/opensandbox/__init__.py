"""Images for tests of the OpenSandbox bridge: upstream's server, and sandboxes with stand-ins."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localcluster import builds, cache, images, nodeimage, paths, progress

HERE = Path(__file__).resolve().parent
REQUIREMENTS = paths.REPOSITORY / "requirements" / "opensandbox.txt"
STANDIN = "opensandbox-standin"
_SERVER_IMAGE = "localhost/sandboxpool-opensandbox-server:dev"
_SANDBOX_IMAGE = "localhost/sandboxpool-opensandbox-sandbox:dev"


@dataclass(frozen=True)
class OpenSandboxImages:
    """The tags of the images.

    Attributes:
        server: opensandbox-server, and the SDK for an application beside it; both as on PyPI.
        sandbox: A sandbox with this project's stand-ins for task-executor and execd.
    """

    server: str
    sandbox: str


def build_images() -> OpenSandboxImages:
    """Build both images and load them into all nodes; nothing is done twice."""
    engine = images.current_engine()
    standin = builds.ensure([STANDIN])[STANDIN]
    base = nodeimage.base_image(engine) if engine.owned else ""
    inputs = [HERE / "Dockerfile", HERE / "bootstrap.sh", REQUIREMENTS]
    key = cache.digest(*(path.read_bytes() for path in [*inputs, standin]), base)
    tags = {"server": _SERVER_IMAGE, "sandbox": _SANDBOX_IMAGE}
    with cache.lock(paths.state_dir() / "opensandbox.lock", timeout=images.BUILD_SECONDS):
        if any(images.content_of(engine, tag) != key for tag in tags.values()):
            with (
                progress.step("build OpenSandbox's images") as step,
                tempfile.TemporaryDirectory(prefix="localcluster-image-") as scratch,
            ):
                context = Path(scratch)
                shutil.copy(HERE / "Dockerfile", context)
                shutil.copy(HERE / "bootstrap.sh", context)
                shutil.copy(standin, context / "standin")
                shutil.copy(REQUIREMENTS, context / "requirements.txt")
                images.build_targets(engine, step, context, base, REQUIREMENTS, key, tags)
    for tag in tags.values():
        images.load_image(tag)
    return OpenSandboxImages(_SERVER_IMAGE, _SANDBOX_IMAGE)
