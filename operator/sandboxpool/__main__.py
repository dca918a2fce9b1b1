"""``python -m sandboxpool``: run the operator."""

import asyncio
import gc
import logging
import sys

try:
    from sandboxpool.app import operator as app
    from sandboxpool.app import settings
    from sandboxpool.app.preflight import StartError
    from sandboxpool.kube.credentials import CredentialsError
    from sandboxpool.observability import logs
    from sandboxpool.observability.web import ListenError
    from sandboxpool.util.environment import SettingsError
except ModuleNotFoundError as error:
    # `pip install sandboxpool` brings the client and the kubectl plugin only.
    if (error.name or "").partition(".")[0] == "sandboxpool":
        raise
    sys.exit(
        f"sandboxpool: the Python package {error.name!r} is missing, which the operator needs:"
        " pip install 'sandboxpool[operator]'"
    )

# The API server accepts JSON nested up to 10,000 levels deep, also in a pool's template. With
# Python's default limit, one such pool would make the list of all pools unreadable. A deep copy
# takes two calls a level. The main thread's stack of 8 MiB has room for twice the decoders' frames.
RECURSION_LIMIT = 25_000


def main() -> int:
    """Run the operator; return the process's exit code."""
    try:
        configured = settings.load()
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"sandboxpool: {line}", file=sys.stderr)
        return 2
    logs.configure(configured.log_level)
    sys.setrecursionlimit(RECURSION_LIMIT)
    # Objects created by now live as long as the process, so the garbage collector need not traverse
    # them. It runs less often, because a full collection blocks the loop, longer for larger caches.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        asyncio.run(app.run(configured))
    except (CredentialsError, ListenError, StartError) as error:
        # The message says what to do; a traceback would hide it.
        logging.getLogger("sandboxpool").critical("the operator cannot start: %s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
