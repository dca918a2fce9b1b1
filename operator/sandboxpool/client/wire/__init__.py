"""Protocols without input or output: bytes go in, events come out, and the other way round."""
