"""Fake nodes and kubelets over a real API server, for tests and benchmarks."""

from fakekubelet import texts
from fakekubelet.background import FakeNodes
from fakekubelet.behaviour import ContainerRun, Exit
from fakekubelet.client import Access, ApiError, Client
from fakekubelet.nodes import FakeNode

__all__ = [
    "Access",
    "ApiError",
    "Client",
    "ContainerRun",
    "Exit",
    "FakeNode",
    "FakeNodes",
    "texts",
]
