"""``python -m sandboxpool.opensandbox``: run the bridge."""

import asyncio
import logging
import sys

try:
    from sandboxpool.kube.credentials import CredentialsError
    from sandboxpool.observability import logs
    from sandboxpool.observability.web import ListenError
    from sandboxpool.opensandbox import bridge, settings
    from sandboxpool.util.environment import SettingsError
except ModuleNotFoundError as error:
    # `pip install sandboxpool` brings the client and the kubectl plugin only.
    if (error.name or "").partition(".")[0] == "sandboxpool":
        raise
    sys.exit(
        f"sandboxpool.opensandbox: the Python package {error.name!r} is missing, which the bridge"
        " needs: pip install 'sandboxpool[operator]'"
    )


def main() -> int:
    """Run the bridge; return the process's exit code."""
    try:
        configured = settings.load()
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"sandboxpool.opensandbox: {line}", file=sys.stderr)
        return 2
    logs.configure(configured.log_level)
    try:
        asyncio.run(bridge.run(configured))
    except (CredentialsError, ListenError) as error:
        logging.getLogger("sandboxpool").critical("the bridge cannot start: %s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
