"""Expressions over the operator's metrics.

Only the leader knows pools, so that its standbys expose no series of pools. For one scrape after a
hand-over, Prometheus can still hold those of the former leader: a gauge is therefore the maximum
over the replicas, and only then summed over pools. A counter is the sum of the replicas' rates.
"""

# Series of the pools that the variables select.
POOLS = 'namespace=~"$namespace",pool=~"$pool"'
# Series of the operator. Every controller may have metrics of its work queues by the same names.
JOB = 'job=~"$job"'
# Grafana's range for rates: at least four scrapes.
RATE = "[$__rate_interval]"

_OF_CLASS = f'sandboxpool_pods{{{POOLS},runtime_class=~"$runtime_class",state="warm"}}'


def gauge(selector: str, *labels: str) -> str:
    """Return a gauge by these labels, which must identify a series within one replica."""
    return f"max by ({', '.join(labels)}) ({selector})"


def pool_gauge(metric: str, *matchers: str) -> str:
    """Return a gauge of the selected pools by namespace and pool."""
    selector = ",".join((POOLS, *matchers))
    return of_class(gauge(f"{metric}{{{selector}}}", "namespace", "pool"))


def of_class(expression: str) -> str:
    """Limit series with namespace and pool to pools of the selected RuntimeClasses.

    Most metrics of pools have no label for the class.
    """
    return f"{expression} and on (namespace, pool) {_OF_CLASS}"


def pool_rate(metric: str, *labels: str, matchers: str = "") -> str:
    """Return events per second of the selected pools, summed by these labels."""
    selector = ",".join(filter(None, (POOLS, matchers)))
    rate = of_class(f"rate({metric}{{{selector}}}{RATE})")
    return f"sum by ({', '.join(labels)}) ({rate})" if labels else f"sum({rate})"


def quantile(q: float, buckets: str) -> str:
    """Return a quantile of a histogram's summed buckets."""
    return f"histogram_quantile({q}, {buckets})"
