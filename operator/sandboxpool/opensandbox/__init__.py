"""The OpenSandbox bridge: applications of OpenSandbox get sandboxes of SandboxPools.

It is a process of its own, and a client of the public API like any other: a BatchSandbox, which
OpenSandbox's server creates, gets a SandboxClaim. When the claim is bound, the bridge delivers the
sandbox's task and publishes the sandbox's address. It may not read or write pods and secrets, and
it is the only part of the product that connects to sandboxes.
"""
