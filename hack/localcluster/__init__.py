"""A local Kubernetes cluster with gVisor nodes, and a bare control plane for tests.

Run ``python -m localcluster --help`` with ``hack/`` on ``PYTHONPATH``. The parts, from the
bottom: `paths`, `process`, `progress` and `cache` know nothing of Kubernetes; `builds` makes
binaries from pinned Go modules; `engine`, `rootfs`, `archive` and `nodeimage` stand in for a
Docker installation and an image registry; `kindcluster`, `network`, `nodes` and `images` make
and change the cluster; `controlplane` is kube-apiserver and etcd alone.
"""
