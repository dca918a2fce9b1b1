"""Pod networking between the nodes: a bridge on each, and a route to the pods of each other."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from localcluster.engine import Engine

COMMAND_SECONDS = 60
CLUSTER_CIDR = "10.244.0.0/16"
CONFLIST = "/etc/cni/net.d/10-sandboxpool.conflist"


def apply(engine: Engine, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set up all nodes; repeatable, and needed again after a node container was restarted.

    Args:
        engine: The engine that runs the nodes.
        nodes: The Node objects by name; each must have its pod network assigned.
    """
    cidrs = {name: str(node["spec"]["podCIDR"]) for name, node in nodes.items()}
    addresses = {name: _address(node) for name, node in nodes.items()}

    def configure(name: str) -> None:
        routes = [
            f"ip route replace {cidrs[other]} via {addresses[other]}"
            for other in sorted(nodes)
            if other != name
        ]
        rule = f"POSTROUTING -s {cidrs[name]} ! -d {CLUSTER_CIDR} -j MASQUERADE"
        lines = [
            "set -e",
            *routes,
            f"iptables -w 5 -t nat -C {rule} 2>/dev/null || iptables -w 5 -t nat -A {rule}",
            f"mkdir -p /etc/cni/net.d && cat > {CONFLIST}.new && mv {CONFLIST}.new {CONFLIST}",
        ]
        engine.docker(
            *("exec", "-i", name, "sh", "-c", "\n".join(lines)),
            stdin=_conflist(cidrs[name]),
            timeout=COMMAND_SECONDS,
        )

    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        for future in [pool.submit(configure, name) for name in nodes]:
            future.result()


def _address(node: Mapping[str, Any]) -> str:
    found = (str(a["address"]) for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    return next(a for a in found if ipaddress.ip_address(a).version == 4)


def _conflist(cidr: str) -> str:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": cidr}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]})
