"""What begins the scripts that tests run as an application of OpenSandbox, with its SDK."""

import json
from typing import Any

from opensandbox import SandboxSync
from opensandbox.config import ConnectionConfigSync
from opensandbox.exceptions import SandboxApiException

SERVER = "127.0.0.1:8080"


def connection(**options: Any) -> ConnectionConfigSync:
    return ConnectionConfigSync(domain=SERVER, **options)


def create(pool: str, extensions: dict[str, str] | None = None, **options: Any) -> SandboxSync:
    """Creates a sandbox of a pool; the SDK wants an image, and the server ignores it."""
    options.setdefault("connection_config", connection())
    return SandboxSync.create("none", extensions={"poolRef": pool, **(extensions or {})}, **options)


def refusal(pool: str, **options: Any) -> dict[str, Any]:
    """Creates what is to be refused, and says how it was."""
    try:
        create(pool, **options).kill()
    except SandboxApiException as error:
        after = getattr(error, "retry_after", None)
        return {
            "type": type(error).__name__,
            "status": error.status_code,
            "code": error.error.code if error.error else None,
            "message": str(error),
            "retry_after": after.total_seconds() if after else None,
        }
    raise AssertionError(f"pool {pool} gave a sandbox")


def tell(value: object) -> None:
    print(json.dumps(value, default=str))
