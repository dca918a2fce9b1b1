"""The SandboxPool controller: pure decisions, and the modules that apply them."""
