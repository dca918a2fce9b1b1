"""Checks with a server-side dry run whether the API server accepts the pods of a pool's template.

The dry run calls every admission plugin, and its response has the node constraints that admission
adds. It runs when the template or the class changes. A rejected template is checked again with an
exponential backoff, because a missing object may be created and a policy may change, and a pool
must recover without a change of its spec. An accepted template is checked again periodically, and
when a created pod has other node constraints than the dry run's, because the node selector of the
namespace may have changed.

A webhook may hang, so the dry run runs in a task beside the reconcile. Until it ends, the last
result for the same template and class applies.
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
from sandboxpool.sandboxes.config_volume import config_conflict
from sandboxpool.sandboxes.template import build_pod, pod_name
from sandboxpool.util.backoff import delay_after, spread

logger = logging.getLogger(__name__)

# The response mostly comes within milliseconds: this wait saves a second reconcile, and a status
# that is unknown for a moment.
RECONCILE_WAIT_SECONDS = 0.25
# The default timeout of a webhook is ten seconds, and with failurePolicy Ignore the response comes
# after it: two webhooks that hang, one after the other, must not keep a pool empty.
DRY_RUN_TIMEOUT_SECONDS = 25.0
# The backoff doubles from the first to the longest; a server that does not answer is spared.
FIRST_REFUSED_SECONDS = 1.0
FIRST_UNANSWERED_SECONDS = 5.0
LONGEST_RECHECK_SECONDS = 300.0
# An accepted template is checked again at the longer interval (with jitter), and after a pod with
# other constraints not before the shorter one, because a webhook may alternate.
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
    "the dry run of a pod of this template is in progress",
)

Key = tuple[str, str]
# The result, and the initial backoff until the next check.
_DryRunOutcome = tuple[TemplateCheckResult, float]


@dataclass(eq=False)
class _TemplateCheck:
    """The state of the check of one pool's template.

    Attributes:
        checked: the template's revision and the class.
        result: the last result.
        recheck_at: when to check again, in seconds of the clock; None for never.
        failures: the number of consecutive results that did not accept the template.
        dry_run_task: the dry run in progress.
        awaited: whether a reconcile is waiting for the dry run.
        invalidated: whether a create was rejected since the template was accepted.
        answered_at: when the last dry run ended, in seconds of the clock.
    """

    checked: tuple[str, Runtime]
    result: TemplateCheckResult = CHECK_PENDING
    recheck_at: float | None = 0.0
    failures: int = 0
    dry_run_task: asyncio.Task[_DryRunOutcome] | None = None
    awaited: bool = False
    invalidated: bool = False
    answered_at: float = 0.0


class TemplateChecker:
    """Keeps the result for each pool's template, with at most one dry run a pool in progress.

    Args:
        client: the API client.
        probe: the image of the probe container, for pools that prove each sandbox.
        clock: a monotonic clock, in seconds.
        on_result: called with the pool's key when a dry run ends after its reconcile.
    """

    def __init__(
        self,
        client: ApiClient,
        probe: ProbeImage,
        clock: Callable[[], float],
        on_result: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._probe = probe
        self._clock = clock
        self._on_answer = on_result
        self._limiter = RequestLimiter(CHECKS_AT_ONCE)
        self._checks: dict[str, _TemplateCheck] = {}

    def close(self) -> None:
        """Cancel all dry runs in progress."""
        for pool_uid in list(self._checks):
            self.forget(pool_uid)

    def forget(self, pool_uid: str) -> None:
        """Forget a pool that is deleted, or whose class is missing."""
        check = self._checks.pop(pool_uid, None)
        if check is not None and check.dry_run_task is not None:
            check.dry_run_task.cancel()

    def invalidate(self, pool_uid: str) -> None:
        """Check again: a create was rejected although the dry run was accepted."""
        check = self._checks.get(pool_uid)
        if check is not None and check.result.state is TemplateState.ACCEPTED:
            check.recheck_at = self._clock()
            check.invalidated = True

    def observe(self, pool_uid: str, answer: bytes) -> None:
        """Check again if a created pod has other node constraints than the dry run's.

        Args:
            pool_uid: the pool's uid.
            answer: the response to the create.

        Raises:
            msgspec.DecodeError: the response is not a pod; also the other errors of `UNREADABLE`.
        """
        check = self._checks.get(pool_uid)
        if check is None or check.result.node_constraints is None:
            return
        _, runtime = check.checked
        if admitted_node_constraints(answer, runtime) != check.result.node_constraints:
            soon = max(self._clock(), check.answered_at + MIN_RECHECK_SECONDS)
            check.recheck_at = min(soon, check.recheck_at or soon)

    def recheck_at(self, pool_uid: str) -> float | None:
        """When the next check is due, in seconds of the clock; None if time alone starts none."""
        check = self._checks.get(pool_uid)
        if check is None or check.dry_run_task is not None:
            return None
        return check.recheck_at

    async def check(self, pool: Pool, runtime: Runtime | None) -> TemplateCheckResult:
        """Return the result for a pool's template; start a dry run if one is due."""
        if len(pool.name) > names.MAX_POOL_NAME:
            return TemplateCheckResult(
                TemplateState.REJECTED,
                Reason.POD_NAME_TOO_LONG,
                f"metadata.name has {len(pool.name)} characters, and may have at most "
                f"{names.MAX_POOL_NAME}, because the pods' hostnames begin with it: create the "
                "pool again under a shorter name",
            )
        if runtime is None:
            # The check starts again once the class is back.
            self.forget(pool.uid)
            return TemplateCheckResult(
                TemplateState.NOT_CHECKED,
                Reason.TEMPLATE_NOT_CHECKED,
                "the template is checked once its RuntimeClass exists",
            )
        template = pool.template.get("spec")
        if pool.config_path and (conflict := config_conflict(template, pool.config_path)):
            self.forget(pool.uid)
            return TemplateCheckResult(
                TemplateState.REJECTED, Reason.TEMPLATE_REJECTED, truncate(conflict)
            )
        checked = pool.revision, runtime
        check = self._checks.get(pool.uid)
        if check is None or check.checked != checked:
            self.forget(pool.uid)
            check = self._checks[pool.uid] = _TemplateCheck(checked)
        due = check.recheck_at is not None and check.recheck_at <= self._clock()
        if due and check.dry_run_task is None:
            check.dry_run_task = asyncio.create_task(self._dry_run(pool, runtime))
            check.dry_run_task.add_done_callback(partial(self._on_dry_run_done, pool, check))
            check.awaited = True
            try:
                await asyncio.wait({check.dry_run_task}, timeout=RECONCILE_WAIT_SECONDS)
            finally:
                check.awaited = False
        return check.result

    def _on_dry_run_done(
        self, pool: Pool, check: _TemplateCheck, dry_run_task: asyncio.Task[_DryRunOutcome]
    ) -> None:
        if self._checks.get(pool.uid) is not check:
            # The pool, its template or its class has changed.
            return
        check.dry_run_task = None
        if dry_run_task.cancelled():
            answer = _unanswered("the request was cancelled")
        elif (error := dry_run_task.exception()) is not None:
            text = "the dry run of a pod failed unexpectedly: %r"
            logger.error(text, error, exc_info=error, extra=pool.reference.log)
            answer = _unanswered(repr(error))
        else:
            answer = dry_run_task.result()
        result, first = answer
        was_accepted = check.result.state is TemplateState.ACCEPTED and not check.invalidated
        if was_accepted and result.state is TemplateState.NOT_CHECKED:
            # A periodic check that got no response does not withdraw the acceptance.
            result = check.result
        elif result.state is TemplateState.ACCEPTED and result.node_constraints is None:
            result = replace(result, node_constraints=check.result.node_constraints)
        check.result, check.answered_at, check.invalidated = result, self._clock(), False
        if result.state is TemplateState.ACCEPTED:
            check.recheck_at = self._clock() + spread(ACCEPTED_RECHECK_SECONDS)
            check.failures = 0
        else:
            pause = spread(delay_after(check.failures, first, LONGEST_RECHECK_SECONDS))
            check.recheck_at = self._clock() + pause
            check.failures += 1
        if not check.awaited:
            self._on_answer(pool.key)

    async def _dry_run(self, pool: Pool, runtime: Runtime) -> _DryRunOutcome:
        name = pod_name(pool.name, "dry run")
        body = build_pod(pool, runtime, Verdict(), name, probe=self._probe)
        path = resource_path("v1", "pods", pool.namespace)
        how = {"dryRun": "All", "fieldValidation": "Strict"}
        try:
            async with self._limiter.acquire(pool.uid), asyncio.timeout(DRY_RUN_TIMEOUT_SECONDS):
                answer = await self._client.create(path, body, how)
            altered = forbidden_mutation(body, answer)
            node_constraints = admitted_node_constraints(answer, runtime)
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
            result = TemplateCheckResult(TemplateState.REJECTED, Reason.POD_ALTERED, altered)
            return result, FIRST_REFUSED_SECONDS
        return replace(ACCEPTED, node_constraints=node_constraints), 0.0


def _unanswered(cause: str) -> _DryRunOutcome:
    return _not_checked(cause), FIRST_UNANSWERED_SECONDS


def _first_pause(error: ApiError) -> float:
    if error.namespace_terminating:
        # Nothing but a new namespace changes this answer.
        return LONGEST_RECHECK_SECONDS
    missing_or_refused = is_dependency_missing(error) or is_pod_rejected(error)
    return FIRST_REFUSED_SECONDS if missing_or_refused else FIRST_UNANSWERED_SECONDS


def result_of(error: ApiError) -> TemplateCheckResult:
    """Whether a failed dry run means that the template is rejected, or something else."""
    if is_quota_exceeded(error) or error.already_exists:
        # The template is accepted; the condition Warm names what blocks its pods.
        return ACCEPTED
    if error.namespace_terminating:
        return TemplateCheckResult(
            TemplateState.NOT_CHECKED, Reason.NAMESPACE_TERMINATING, NAMESPACE_TERMINATING
        )
    if is_dependency_missing(error):
        return TemplateCheckResult(
            TemplateState.NOT_CHECKED,
            Reason.TEMPLATE_NOT_CHECKED,
            f"an object that spec.template refers to does not exist, create it or correct its "
            f"name: {truncate(error.message)}",
        )
    if not is_pod_rejected(error):
        return _not_checked(error.message)
    return TemplateCheckResult(
        TemplateState.REJECTED,
        Reason.TEMPLATE_REJECTED,
        f"the API server rejects the pods of this template, correct spec.template or the policy "
        f"that rejects it: {truncate(error.message)}",
    )


def _not_checked(cause: str) -> TemplateCheckResult:
    return TemplateCheckResult(
        TemplateState.NOT_CHECKED,
        Reason.TEMPLATE_NOT_CHECKED,
        f"the API server could not check the template: {truncate(cause)}",
    )
