"""SandboxClaims: reconciliation, binding in two writes, expiry and clean-up."""
