"""How long sandboxes take to start, stage by stage, by the arrival of the watch's events.

Condition timestamps have whole seconds, which is longer than a gVisor sandbox needs; the moment
at which an event reaches us is good to some milliseconds. Pods that were already there when the
operator started are not measured.
"""

from collections import deque
from collections.abc import Callable

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import PoolStartup, StageTiming

WINDOW_SECONDS = 3600
MAX_SAMPLES = 500
STAGES = ("scheduled", "sandbox", "started", "ready")


def completed_stages(pod: Pod) -> set[str]:
    """The stages that a pod has behind it."""
    true = {c.type for c in pod.status.conditions if c.status == "True"}
    stages = set()
    if "PodScheduled" in true:
        stages.add("scheduled")
    if "PodReadyToStartContainers" in true:
        stages.add("sandbox")
    if pod.running:
        stages.add("started")
    if "Ready" in true:
        stages.add("ready")
    return stages


class StartupTimes:
    """Samples of one pool, bounded in number and age."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, float]]] = {
            stage: deque(maxlen=MAX_SAMPLES) for stage in STAGES
        }

    def add(self, stage: str, seconds: float, now: float) -> None:
        """Take one sample, measured at ``now``."""
        self._samples[stage].append((now, seconds))

    def p95(self, stage: str, now: float) -> float | None:
        """What 95 of 100 of the window's samples do not exceed, in seconds; None without any."""
        values = self._values(stage, now)
        return _percentile(values, 95) / 1000 if values else None

    def summary(self, now: float) -> PoolStartup | None:
        """Percentiles as the API has them, over the window; None without samples."""
        stages = {}
        for stage in self._samples:
            values = self._values(stage, now)
            if values:
                stages[stage] = StageTiming(
                    p50Milliseconds=_percentile(values, 50),
                    p95Milliseconds=_percentile(values, 95),
                    p99Milliseconds=_percentile(values, 99),
                    samples=len(values),
                )
        return PoolStartup(stages=stages, windowSeconds=WINDOW_SECONDS) if stages else None

    def _values(self, stage: str, now: float) -> list[float]:
        samples = self._samples[stage]
        while samples and now - samples[0][0] > WINDOW_SECONDS:
            samples.popleft()
        return sorted(seconds for _, seconds in samples)


def _percentile(values: list[float], percent: int) -> int:
    """The smallest value, in milliseconds, that so many percent of the sorted seconds keep to."""
    rank = -(-len(values) * percent // 100)
    return round(values[rank - 1] * 1000)


class StartupTracker:
    """Turns the events of pods into samples.

    Args:
        on_sample: told the pool's uid, the stage and the seconds from creation to its end.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, on_sample: Callable[[str, str, float], None], clock: Callable[[], float]
    ) -> None:
        self._on_sample = on_sample
        self._clock = clock
        self._began: dict[str, float] = {}
        self._reached: dict[str, set[str]] = {}

    def track(self, pod_uid: str, at: float) -> None:
        """The API server has said that it made this pod, asked at this time of the clock."""
        self._began[pod_uid] = at
        self._reached[pod_uid] = set()

    def observe(self, pool_uid: str, pod: Pod) -> None:
        """A pod's event has come."""
        uid = pod.metadata.uid
        began = self._began.get(uid)
        if began is None:
            return
        seen, now_has = self._reached[uid], completed_stages(pod)
        for stage in STAGES:
            if stage in now_has and stage not in seen:
                seen.add(stage)
                self._on_sample(pool_uid, stage, self._clock() - began)
        if "ready" in seen or pod.finished:
            self.forget(uid)

    def forget(self, pod_uid: str) -> None:
        """The pod is gone, or nothing more is to be measured of it."""
        self._began.pop(pod_uid, None)
        self._reached.pop(pod_uid, None)
