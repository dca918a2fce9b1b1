"""Handing sandboxes out: the allocator, the two writes of a binding, and a claim's later life."""
