"""The demo: a local cluster, the operator installed by Helm, pools and a claim, explained.

Run ``make demo``, or ``python -m demo up`` with ``hack/`` on ``PYTHONPATH``. `terminal` shows
commands and their output, `kube` asks the cluster and waits, `install` puts the operator into it
(the end-to-end tests use it too), `binding` times a claim, and `tour` is what the demo tells.
"""
