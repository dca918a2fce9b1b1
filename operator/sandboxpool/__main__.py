"""``python -m sandboxpool``: run the operator."""

import asyncio
import gc
import logging
import sys

from sandboxpool.app import logs, settings
from sandboxpool.app import operator as app
from sandboxpool.app.preflight import StartError
from sandboxpool.kube.credentials import CredentialsError
from sandboxpool.observability.web import ListenError

# An API server reads no JSON that is nested more than 10,000 deep, and a pool's template may hold
# whatever it reads. With Python's own limit, one such pool would make the list of all unreadable.
# To copy takes two calls a level. A main thread's stack of 8 MiB holds the decoders' frames twice.
RECURSION_LIMIT = 25_000


def main() -> int:
    """Run the operator; return the process's exit code."""
    try:
        configured = settings.load()
    except settings.SettingsError as error:
        for line in str(error).splitlines():
            print(f"sandboxpool: {line}", file=sys.stderr)
        return 2
    logs.configure(configured.log_level)
    sys.setrecursionlimit(RECURSION_LIMIT)
    # What start-up has made lives as long as the process: keep the collector away from it, and
    # let it run less often, for each full pass stalls the loop for as long as the caches are big.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        asyncio.run(app.run(configured))
    except (CredentialsError, ListenError, StartError) as error:
        # One line that says what to do, and no traceback.
        logging.getLogger("sandboxpool").critical("the operator cannot start: %s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
