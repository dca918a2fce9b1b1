"""Steps: what the user sees while something slow happens, and what an error says."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from localcluster import paths, process

REFRESH_SECONDS = 0.5


class StepError(Exception):
    """A step failed; the text names the step and ends with the tail of its log."""

    def __init__(self, step: str, reason: str, log: Path | None = None) -> None:
        """Say which step failed and why, and show the end of its log."""
        text = f"step '{step}' failed: {reason}"
        if log is not None and (last := process.tail(log)):
            text += f"\n--- last lines of {log}\n{last}"
        super().__init__(text)
        self.step = step


class Step:
    """One running step with a log file of its own."""

    def __init__(self, name: str, log: Path) -> None:
        """Start the clock of a step."""
        self.name = name
        self.log = log
        self.started = time.monotonic()

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
        stdin_file: Path | None = None,
        check: bool = True,
    ) -> str:
        """Run a command, writing what it says to the log of the step."""
        return process.run(
            command,
            timeout=timeout,
            log=self.log,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdin_file=stdin_file,
            check=check,
        )

    def note(self, text: str) -> None:
        """Write a line to the log of the step."""
        with self.log.open("a") as stream:
            stream.write(f"{text}\n")


class Progress:
    """Shows running steps: a live line each on a terminal, a line at start and end elsewhere."""

    def __init__(self) -> None:
        """Show progress on the standard error."""
        self._lock = threading.Lock()
        self._running: list[Step] = []
        self._drawn = 0
        self._live = sys.stderr.isatty()
        self._ticker: threading.Thread | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show a step while the block runs and turn what goes wrong in it into a `StepError`."""
        log = paths.log_dir() / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        step = Step(name, log)
        self._begin(step)
        try:
            yield step
        except StepError:
            self._end(step, "failed")
            raise
        except (process.CommandError, OSError, ValueError, KeyError, TimeoutError) as error:
            self._end(step, "failed")
            raise StepError(name, f"{type(error).__name__}: {error}", log) from error
        except BaseException:
            self._end(step, "interrupted")
            raise
        self._end(step, "done")

    def say(self, text: str) -> None:
        """Print a line above the live ones."""
        with self._lock:
            self._erase()
            print(text, file=sys.stderr, flush=True)
            self._draw()

    def _begin(self, step: Step) -> None:
        if not self._live:
            self.say(f"...  {step.name}")
        with self._lock:
            self._running.append(step)
            if self._live and (self._ticker is None or not self._ticker.is_alive()):
                self._ticker = threading.Thread(target=self._tick, daemon=True)
                self._ticker.start()

    def _end(self, step: Step, outcome: str) -> None:
        with self._lock:
            self._running.remove(step)
        self.say(f"{outcome:<4} {step.name} ({time.monotonic() - step.started:.1f} s)")

    def _tick(self) -> None:
        while True:
            with self._lock:
                if not self._running:
                    return
                self._erase()
                self._draw()
            time.sleep(REFRESH_SECONDS)

    def _erase(self) -> None:
        if self._live and self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
        self._drawn = 0

    def _draw(self) -> None:
        if not self._live:
            return
        for step in self._running:
            sys.stderr.write(f"...  {step.name} ({time.monotonic() - step.started:.0f} s)\n")
        self._drawn = len(self._running)
        sys.stderr.flush()


PROGRESS = Progress()
step = PROGRESS.step
say = PROGRESS.say
