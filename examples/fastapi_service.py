"""A web service that runs each request's code in a sandbox of its own.

pip install fastapi uvicorn
SANDBOX_POOL=tasks uvicorn --app-dir examples fastapi_service:app
curl -d '{"code": "echo $((6 * 7))"}' -H 'content-type: application/json' localhost:8000/run
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from sandboxpool.client import (
    AsyncSandboxPools,
    BindTimeout,
    CommandTimeout,
    NoWarmSandbox,
    OutputLimitExceeded,
    SandboxLost,
)

OUTPUT_BYTES = 1_000_000
# A caller rather hears "try again" than waits.
BIND_SECONDS = 10


class Code(BaseModel):
    """What a request brings."""

    code: str = Field(max_length=100_000)
    seconds: float = Field(default=10, gt=0, le=60)


class Output(BaseModel):
    """What came of it."""

    stdout: str
    stderr: str
    exit_code: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client for all requests, so that they share its connections."""
    async with AsyncSandboxPools.from_config() as pools:
        app.state.pools = pools
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/run")
async def run(body: Code, request: Request) -> Output:
    """Run a shell script."""
    pools: AsyncSandboxPools = request.app.state.pools
    pool = os.environ.get("SANDBOX_POOL", "tasks")
    try:
        # The ttl ends the sandbox if this process dies; the end of the block does otherwise.
        async with pools.claim(pool, ttl=120, bind_timeout=BIND_SECONDS) as sandbox:
            result = await sandbox.run(
                ["sh", "-s"],
                stdin=body.code.encode(),
                timeout=body.seconds,
                limit=OUTPUT_BYTES,
            )
    except (NoWarmSandbox, BindTimeout, SandboxLost) as error:
        raise HTTPException(503, error.message, headers={"Retry-After": "5"}) from error
    except CommandTimeout as error:
        raise HTTPException(408, f"the code has not ended within {body.seconds:g} s") from error
    except OutputLimitExceeded as error:
        raise HTTPException(413, f"the code wrote more than {OUTPUT_BYTES} bytes") from error
    return Output(
        stdout=result.text,
        stderr=result.stderr.decode(errors="replace"),
        exit_code=result.exit_code,
    )
