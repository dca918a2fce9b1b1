"""Asking the API server whether it would take the pod that we would really make.

A server-side dry run gives every admission plugin its say, and shows where the pods may go as it
has left them. It runs when the template or the class changes; a refusal is asked about again, soon
at first and then ever more seldom, because what was missing may have come and the policy behind it
may have changed, and a pool must not need a touch to recover. What was accepted is asked about
again now and then, and when a pod comes back with other limits than the dry run's, because the
namespace's node selector may have changed.

The answer is waited for beside the reconcile, for a webhook may hang: meanwhile the former answer
stands, if it was about the same template and class.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.pools.admission_errors import (
    NAMESPACE_TERMINATING,
    is_dependency_missing,
    is_pod_rejected,
    is_quota_exceeded,
)
from sandboxpool.pools.mutation import forbidden_mutation
from sandboxpool.pools.plan import TemplateCheckResult, TemplateState
from sandboxpool.pools.request_limiter import RequestLimiter
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.node_constraints import admitted_node_constraints
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.template import build_pod, pod_name
from sandboxpool.util.backoff import delay_after, spread

logger = logging.getLogger(__name__)

# The answer mostly comes within milliseconds: to wait so long saves a second look at the pool, and
# a status that says for a moment that nothing is known.
RECONCILE_WAIT_SECONDS = 0.25
# A webhook's own timeout is ten seconds unless somebody has set another, and with failurePolicy
# Ignore the answer comes after it: two that hang, one behind the other, must not keep a pool empty.
DRY_RUN_TIMEOUT_SECONDS = 25.0
# Pauses double from the first to the longest; a server that does not answer has trouble enough.
FIRST_REFUSED_SECONDS = 1.0
FIRST_UNANSWERED_SECONDS = 5.0
LONGEST_RECHECK_SECONDS = 300.0
# What was accepted is asked about again after so long, each pool at a time of its own; and after a
# pod has come back otherwise not before so long after the last time, for a webhook may be fickle.
ACCEPTED_RECHECK_SECONDS = 900.0
MIN_RECHECK_SECONDS = 60.0
CHECKS_AT_ONCE = 4

ACCEPTED = TemplateCheckResult(
    TemplateState.ACCEPTED,
    Reason.TEMPLATE_ACCEPTED,
    "the API server accepts the pods of this template",
)
CHECK_PENDING = TemplateCheckResult(
    TemplateState.NOT_CHECKED,
    Reason.TEMPLATE_NOT_CHECKED,
    "the API server was asked whether it accepts the pods of this template, and its answer is "
    "awaited",
)

Key = tuple[str, str]
# The verdict, and the first of the pauses between two questions that are answered so.
_Answer = tuple[TemplateCheckResult, float]


@dataclass(eq=False)
class _TemplateCheck:
    """What is known of one pool's template.

    Attributes:
        about: the revision and the class.
        verdict: the last answer.
        again_at: when to ask again, by the clock; None for never.
        failures: answers in a row that were no acceptance.
        dry_run_task: the request under way.
        awaited: a reconcile waits for its answer at this moment.
        invalidated: the acceptance has turned out to be none.
        answered_at: when the last answer came, by the clock.
    """

    about: tuple[str, Runtime]
    verdict: TemplateCheckResult = CHECK_PENDING
    again_at: float | None = 0.0
    failures: int = 0
    dry_run_task: asyncio.Task[_Answer] | None = None
    awaited: bool = False
    invalidated: bool = False
    answered_at: float = 0.0


class TemplateChecker:
    """Remembers the verdict of each pool's template, and asks for it one request at a time.

    Args:
        client: the API client.
        probe: what goes before the template's containers where each sandbox is proven.
        clock: a monotonic clock, in seconds, that nobody sets back: a pool waits for it.
        on_answer: told the key of a pool whose answer has come late.
    """

    def __init__(
        self,
        client: ApiClient,
        probe: ProbeImage,
        clock: Callable[[], float],
        on_answer: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._probe = probe
        self._clock = clock
        self._on_answer = on_answer
        self._limiter = RequestLimiter(CHECKS_AT_ONCE)
        self._questions: dict[str, _TemplateCheck] = {}

    def close(self) -> None:
        """End all requests that are under way."""
        for pool_uid in list(self._questions):
            self.forget(pool_uid)

    def forget(self, pool_uid: str) -> None:
        """The pool is gone, or its class."""
        question = self._questions.pop(pool_uid, None)
        if question is not None and question.dry_run_task is not None:
            question.dry_run_task.cancel()

    def invalidate(self, pool_uid: str) -> None:
        """A create was refused that the dry run had accepted: ask again."""
        question = self._questions.get(pool_uid)
        if question is not None and question.verdict.state is TemplateState.ACCEPTED:
            question.again_at = self._clock()
            question.invalidated = True

    def observe(self, pool_uid: str, answer: bytes) -> None:
        """A pod was made: if other nodes are open to it than was known, ask again.

        Raises:
            msgspec.DecodeError: the answer is no pod. Also the other errors of unreadable bytes.
        """
        question = self._questions.get(pool_uid)
        if question is None or question.verdict.placement is None:
            return
        if admitted_node_constraints(answer) != question.verdict.placement:
            soon = max(self._clock(), question.answered_at + MIN_RECHECK_SECONDS)
            question.again_at = min(soon, question.again_at or soon)

    def recheck_at(self, pool_uid: str) -> float | None:
        """When the verdict should be asked for again, by the clock; None for not by time alone."""
        question = self._questions.get(pool_uid)
        if question is None or question.dry_run_task is not None:
            return None
        return question.again_at

    async def check(self, pool: Pool, runtime: Runtime | None) -> TemplateCheckResult:
        """Give the verdict for a pool's template, from memory where it still holds."""
        if len(pool.name) > names.MAX_POOL_NAME:
            return TemplateCheckResult(
                TemplateState.REJECTED,
                Reason.POD_NAME_TOO_LONG,
                f"metadata.name has {len(pool.name)} characters, and the names of its pods, which "
                f"are hostnames, leave room for {names.MAX_POOL_NAME}: make the pool again under a "
                "shorter name",
            )
        if runtime is None:
            # Nothing is asked until the class is back: a time to ask again would be long past.
            self.forget(pool.uid)
            return TemplateCheckResult(
                TemplateState.NOT_CHECKED,
                Reason.TEMPLATE_NOT_CHECKED,
                "a template can only be checked together with its RuntimeClass",
            )
        about = pool.revision, runtime
        question = self._questions.get(pool.uid)
        if question is None or question.about != about:
            self.forget(pool.uid)
            question = self._questions[pool.uid] = _TemplateCheck(about)
        due = question.again_at is not None and question.again_at <= self._clock()
        if due and question.dry_run_task is None:
            question.dry_run_task = asyncio.create_task(self._ask(pool, runtime))
            question.dry_run_task.add_done_callback(partial(self._answered, pool, question))
            question.awaited = True
            try:
                await asyncio.wait({question.dry_run_task}, timeout=RECONCILE_WAIT_SECONDS)
            finally:
                question.awaited = False
        return question.verdict

    def _answered(
        self, pool: Pool, question: _TemplateCheck, dry_run_task: asyncio.Task[_Answer]
    ) -> None:
        if self._questions.get(pool.uid) is not question:
            # Nobody wants to know any more.
            return
        question.dry_run_task = None
        if dry_run_task.cancelled():
            answer = _unanswered("the request was given up")
        elif (error := dry_run_task.exception()) is not None:
            logger.error("dry run: %r", error, exc_info=error, extra=pool.reference.log)
            answer = _unanswered(repr(error))
        else:
            answer = dry_run_task.result()
        verdict, first = answer
        was_accepted = question.verdict.state is TemplateState.ACCEPTED and not question.invalidated
        if was_accepted and verdict.state is TemplateState.NOT_CHECKED:
            # Nobody has said otherwise, and nobody had to ask.
            verdict = question.verdict
        elif verdict.state is TemplateState.ACCEPTED and verdict.placement is None:
            verdict = replace(verdict, placement=question.verdict.placement)
        question.verdict, question.answered_at, question.invalidated = verdict, self._clock(), False
        if verdict.state is TemplateState.ACCEPTED:
            question.again_at = self._clock() + spread(ACCEPTED_RECHECK_SECONDS)
            question.failures = 0
        else:
            pause = spread(delay_after(question.failures, first, LONGEST_RECHECK_SECONDS))
            question.again_at = self._clock() + pause
            question.failures += 1
        if not question.awaited:
            self._on_answer(pool.key)

    async def _ask(self, pool: Pool, runtime: Runtime) -> _Answer:
        name = pod_name(pool.name, "dry run")
        body = build_pod(pool, runtime, Verdict(), name, probe=self._probe)
        path = resource_path("v1", "pods", pool.namespace)
        how = {"dryRun": "All", "fieldValidation": "Strict"}
        try:
            async with self._limiter.take(pool.uid), asyncio.timeout(DRY_RUN_TIMEOUT_SECONDS):
                answer = await self._client.create(path, body, how)
            altered = forbidden_mutation(body, answer)
            placement = admitted_node_constraints(answer)
        except ApiError as error:
            return result_of(error), _first_pause(error)
        except TimeoutError:
            text = (
                f"no answer within {DRY_RUN_TIMEOUT_SECONDS:.0f} s: an admission webhook may hang"
            )
            return _unanswered(text)
        except (KubeError, *UNREADABLE) as error:
            return _unanswered(str(error))
        if altered:
            verdict = TemplateCheckResult(TemplateState.REJECTED, Reason.POD_ALTERED, altered)
            return verdict, FIRST_REFUSED_SECONDS
        return replace(ACCEPTED, placement=placement), 0.0


def _unanswered(cause: str) -> _Answer:
    return _not_checked(cause), FIRST_UNANSWERED_SECONDS


def _first_pause(error: ApiError) -> float:
    if error.namespace_terminating:
        # Nothing but a new namespace changes this answer.
        return LONGEST_RECHECK_SECONDS
    missing_or_refused = is_dependency_missing(error) or is_pod_rejected(error)
    return FIRST_REFUSED_SECONDS if missing_or_refused else FIRST_UNANSWERED_SECONDS


def result_of(error: ApiError) -> TemplateCheckResult:
    """Read a refused dry run: is the template bad, or is it something else?"""
    if is_quota_exceeded(error) or error.already_exists:
        # The template is good; what keeps its pods out is said by the condition Warm.
        return ACCEPTED
    if error.namespace_terminating:
        return TemplateCheckResult(
            TemplateState.NOT_CHECKED, Reason.NAMESPACE_TERMINATING, NAMESPACE_TERMINATING
        )
    if is_dependency_missing(error):
        return TemplateCheckResult(
            TemplateState.NOT_CHECKED,
            Reason.TEMPLATE_NOT_CHECKED,
            f"something that the pods of this template need does not exist, create it or correct "
            f"its name: {truncate(error.message)}",
        )
    if not is_pod_rejected(error):
        return _not_checked(error.message)
    return TemplateCheckResult(
        TemplateState.REJECTED,
        Reason.TEMPLATE_REJECTED,
        f"the API server refuses the pods of this template, correct spec.template or the policy "
        f"that refuses it: {truncate(error.message)}",
    )


def _not_checked(cause: str) -> TemplateCheckResult:
    return TemplateCheckResult(
        TemplateState.NOT_CHECKED,
        Reason.TEMPLATE_NOT_CHECKED,
        f"the API server could not check the template: {truncate(cause)}",
    )
