"""Asking the API server whether it would take the pod that we would really make.

A server-side dry run gives every admission plugin its say. It runs when the template or the class
changes; a refusal is asked about again every few minutes, because the policy behind it may have
changed without the pool, and a pool must not need a touch to recover.
"""

from dataclasses import dataclass

from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.pools.decide import TemplateState, TemplateVerdict
from sandboxpool.pools.pool import Pool
from sandboxpool.pools.template import LONGEST_POOL_NAME, build_pod, pod_name
from sandboxpool.reasons import Reason
from sandboxpool.runtimes.diagnosis import cut
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict

REJECTED_RECHECK_SECONDS = 300.0
UNANSWERED_RECHECK_SECONDS = 5.0

ACCEPTED = TemplateVerdict(
    TemplateState.ACCEPTED,
    Reason.TEMPLATE_ACCEPTED,
    "the API server accepts the pods of this template",
)


@dataclass
class _Checked:
    about: tuple[str, str]
    verdict: TemplateVerdict
    again_at: float


class TemplateChecker:
    """Remembers the verdict of each pool's template.

    Args:
        client: the API client.
        probe: what goes before the template's containers where each sandbox is proven.
    """

    def __init__(self, client: ApiClient, probe: ProbeImage) -> None:
        self._client = client
        self._probe = probe
        self._checked: dict[str, _Checked] = {}

    def forget(self, pool_uid: str) -> None:
        """The pool is gone, or a create was refused that the dry run had accepted."""
        self._checked.pop(pool_uid, None)

    def recheck_at(self, pool_uid: str) -> float | None:
        """When the verdict should be asked for again, as `check` counts time; None for never."""
        checked = self._checked.get(pool_uid)
        if checked is None or checked.verdict.state is TemplateState.ACCEPTED:
            return None
        return checked.again_at

    async def check(self, pool: Pool, runtime: Runtime | None, now: float) -> TemplateVerdict:
        """Give the verdict for a pool's template, from memory where it still holds.

        ``now`` is of a clock that nobody sets back: a pool waits for a verdict to be asked anew.
        """
        if len(pool.name) > LONGEST_POOL_NAME:
            return TemplateVerdict(
                TemplateState.REJECTED,
                Reason.POD_NAME_TOO_LONG,
                f"metadata.name has {len(pool.name)} characters, and the names of its pods, which "
                f"are hostnames, leave room for {LONGEST_POOL_NAME}: make the pool again under a "
                "shorter name",
            )
        if pool.proof is IsolationProof.PER_SANDBOX and not self._probe.name:
            return TemplateVerdict(
                TemplateState.REJECTED,
                Reason.EVIDENCE_UNAVAILABLE,
                "spec.isolationProof is PerSandbox, but the operator has no probe image: set "
                "SANDBOXPOOL_PROBE_IMAGE (probe.image of the chart), or use PerNode or Off",
            )
        if runtime is None:
            # Nothing is asked until the class is back: a time to ask again would be long past.
            self.forget(pool.uid)
            return TemplateVerdict(
                TemplateState.NOT_CHECKED,
                Reason.TEMPLATE_NOT_CHECKED,
                "a template can only be checked together with its RuntimeClass",
            )
        about = pool.revision, runtime.uid
        known = self._checked.get(pool.uid)
        if (
            known is not None
            and known.about == about
            and (known.verdict.state is TemplateState.ACCEPTED or now < known.again_at)
        ):
            return known.verdict
        verdict = await self._ask(pool, runtime)
        wait = (
            REJECTED_RECHECK_SECONDS
            if verdict.state is TemplateState.REJECTED
            else UNANSWERED_RECHECK_SECONDS
        )
        self._checked[pool.uid] = _Checked(about, verdict, now + wait)
        return verdict

    async def _ask(self, pool: Pool, runtime: Runtime) -> TemplateVerdict:
        name = pod_name(pool.name, "dry run")
        body = build_pod(pool, runtime, Verdict(), name, probe=self._probe)
        try:
            await self._client.create(
                resource_path("v1", "pods", pool.namespace),
                body,
                {"dryRun": "All", "fieldValidation": "Strict"},
            )
        except ApiError as error:
            return verdict_of(error)
        except KubeError as error:
            return TemplateVerdict(
                TemplateState.NOT_CHECKED, Reason.TEMPLATE_NOT_CHECKED, cut(str(error))
            )
        return ACCEPTED


def verdict_of(error: ApiError) -> TemplateVerdict:
    """Read a refused dry run: is the template bad, or is it something else?"""
    if "exceeded quota" in error.message or error.already_exists:
        # The template is good; what keeps its pods out is said by the condition Warm.
        return ACCEPTED
    # Admission's own words; a policy that speaks of RuntimeClasses is a refusal like any other.
    unknown_class = "pod rejected: RuntimeClass" in error.message
    if error.status >= 500 or error.status in (401, 404, 429) or unknown_class:
        return TemplateVerdict(
            TemplateState.NOT_CHECKED,
            Reason.TEMPLATE_NOT_CHECKED,
            f"the API server could not check the template: {cut(error.message)}",
        )
    return TemplateVerdict(
        TemplateState.REJECTED,
        Reason.TEMPLATE_REJECTED,
        f"the API server refuses the pods of this template, correct spec.template or the policy "
        f"that refuses it: {cut(error.message)}",
    )
