from bench.counters import per_claim, writes


def line(verb: str, resource: str, count: int, *, subresource: str = "", code: str = "200") -> str:
    labels = f'code="{code}",resource="{resource}",subresource="{subresource}",verb="{verb}"'
    return f'apiserver_request_total{{{labels},version="v1"}} {count}\n'


METRICS = (
    "# TYPE apiserver_request_total counter\n"
    + line("PATCH", "pods", 7)
    + line("PATCH", "pods", 1, code="409")
    + line("PATCH", "pods", 5, subresource="status")
    + line("WATCH", "pods", 3, code="0")
    + line("LIST", "pods", 3)
    + 'apiserver_request_duration_seconds_count{resource="pods",verb="PATCH"} 99\n'
)


def test_writes_are_counted_by_verb_and_resource_whatever_their_outcome() -> None:
    assert writes(METRICS) == {("PATCH", "pods"): 8.0, ("PATCH", "pods/status"): 5.0}


def test_no_metrics_are_no_writes() -> None:
    assert writes("") == {}


def test_writes_are_given_for_each_claim() -> None:
    grown = {("PATCH", "pods"): 8.0, ("PATCH", "sandboxclaims/status"): 4.0}
    assert per_claim(grown, 4) == {"PATCH pods": 2.0, "PATCH sandboxclaims/status": 1.0}
