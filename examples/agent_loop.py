"""An agent that writes code, runs it in a sandbox, and reads what came of it.

    python examples/agent_loop.py tasks "How many prime numbers are below 1000?"

The model here is you, at the keyboard. To use a language model, call its API in a class of your own
that has the method `next_step` of `Model`; nothing else has to change.
"""

import argparse
from dataclasses import dataclass
from typing import Protocol

from sandboxpool.client import CommandTimeout, OutputLimitExceeded, Sandbox, SandboxPools

COMMAND_SECONDS = 30.0
OUTPUT_BYTES = 20_000


@dataclass(frozen=True)
class Step:
    """What the model wants: code to run, or the answer, which ends the loop."""

    code: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Observation:
    """Code that was run, and what the model is told about it."""

    code: str
    output: str


class Model(Protocol):
    """What decides on the next step."""

    def next_step(self, task: str, observations: list[Observation]) -> Step:
        """Return the next step towards the task, in view of what was run so far."""


class Keyboard:
    """You as the model: a line of shell, or `= ANSWER`."""

    def next_step(self, task: str, observations: list[Observation]) -> Step:
        """Show the last output and ask for the next line."""
        print(observations[-1].output if observations else task)
        line = input("> ")
        return Step(answer=line[1:].strip()) if line.startswith("=") else Step(code=line)


def observe(sandbox: Sandbox, code: str) -> Observation:
    """Run code as the model wrote it. Whatever it does stays in the sandbox."""
    try:
        # The code is input and not an argument: arguments are in the audit log of the API server.
        result = sandbox.run(
            ["sh", "-s"], stdin=code.encode(), timeout=COMMAND_SECONDS, limit=OUTPUT_BYTES
        )
    except (CommandTimeout, OutputLimitExceeded) as error:
        # The model can mend this; an error such as SandboxLost ends the loop.
        written = error.stdout[:OUTPUT_BYTES].decode(errors="replace")
        return Observation(code, f"{written}\n{error}")
    errors = result.stderr.decode(errors="replace")
    return Observation(code, f"{result.text}{errors}exit code {result.exit_code}")


def solve(pools: SandboxPools, pool: str, task: str, model: Model, max_steps: int = 20) -> str:
    """Let the model work on a task in one sandbox, and return its answer.

    Raises:
        RuntimeError: The model gave no answer within `max_steps` steps.
    """
    observations: list[Observation] = []
    with pools.claim(pool, ttl=1800) as sandbox:
        for _ in range(max_steps):
            step = model.next_step(task, observations)
            if not step.code:
                return step.answer
            observations.append(observe(sandbox, step.code))
    raise RuntimeError(f"no answer after {max_steps} steps: raise max_steps, or simplify the task")


def main() -> None:
    """Solve the task of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pool", help="the SandboxPool to claim from")
    parser.add_argument("task")
    arguments = parser.parse_args()
    with SandboxPools.from_config() as pools:
        print(solve(pools, arguments.pool, arguments.task, Keyboard()))


if __name__ == "__main__":
    main()
