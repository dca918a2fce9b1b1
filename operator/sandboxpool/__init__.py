"""SandboxPool: warm pools of isolated sandboxes whose runtime is chosen, seen and proven."""
