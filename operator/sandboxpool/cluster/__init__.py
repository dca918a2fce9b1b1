"""The informer caches and indexes: pods, nodes, RuntimeClasses and pools, in memory."""
