"""Fake nodes and kubelets over a real API server, for tests and benchmarks.

`FakeNodes` is for blocking callers, `FakeKubelet` is the same for a running event loop, and
`python -m fakekubelet` for a shell.
"""

from fakekubelet import texts
from fakekubelet.background import FakeNodes
from fakekubelet.behaviour import Behaviour, ContainerRun, Exit
from fakekubelet.client import Access, ApiError, Client
from fakekubelet.kubelet import FakeKubelet
from fakekubelet.nodes import FakeNode

__all__ = [
    "Access",
    "ApiError",
    "Behaviour",
    "Client",
    "ContainerRun",
    "Exit",
    "FakeKubelet",
    "FakeNode",
    "FakeNodes",
    "texts",
]
