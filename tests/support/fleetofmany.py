"""A large fleet: thousands of nodes, claims and sandboxes."""

from __future__ import annotations

import random
from typing import Any

from support.fleetobjects import (
    SHIM,
    STARTUP,
    claim,
    issue,
    node,
    operator,
    pool,
    runtime,
    runtime_class,
)

Object = dict[str, Any]
LABEL = "karpenter.sh/nodepool"
RUNTIMES = {"gvisor": "runsc", "kata-qemu": "kata-qemu", "kata-fc": "kata-fc"}
_GROUPS = 24


def many(nodes: int = 5000, sandboxes: int = 10_000, pools: int = 200) -> list[Object]:
    """A fleet with a few broken nodes; the same each time.

    Args:
        nodes: How many nodes.
        sandboxes: Half of them are warm, half are claimed.
        pools: How many pools they are of.
    """
    rolled = random.Random(1)
    made: list[Object] = operator()
    for index in range(nodes):
        group = f"{rolled.choice(('spot', 'metal', 'on-demand'))}-{index % _GROUPS:02}"
        excluded = {"kata-fc": "Quarantined"} if index % 500 == 7 else {}
        made.append(
            node(
                f"node-{index:05}",
                *(("runsc", "kata-qemu", "kata-fc") if "metal" in group else ("runsc",)),
                labels={LABEL: group, **{f"example.com/label-{n}": "x" * 20 for n in range(12)}},
                ready=index % 800 != 3,
                excluded=excluded,
            )
        )
    for name, handler in RUNTIMES.items():
        made += [
            runtime_class(name, handler),
            runtime(name, handler, startup=STARTUP, issues=_issues(name)),
        ]
    each = sandboxes // pools // 2
    for index in range(pools):
        name, class_ = f"pool-{index:03}", list(RUNTIMES)[index % 3]
        made.append(
            pool(
                name,
                namespace=f"team-{index % 40:02}",
                runtime_class=class_,
                warm=each,
                target=each,
                claimed=each,
            )
        )
        made += [
            claim(
                f"claim-{index:03}-{number:03}",
                namespace=f"team-{index % 40:02}",
                pool=name,
                bound=f"2026-01-01T11:59:{rolled.choice((0, 0, 0, 0, 1, 3)):02}Z",
                source="Warm" if number % 20 else "Cold",
            )
            for number in range(each)
        ]
    return made


def _issues(name: str) -> list[Object]:
    return [issue("ShimMissing", "node-00007", message=SHIM, count=10)] if name == "kata-fc" else []
