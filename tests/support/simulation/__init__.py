"""A cluster in memory and in virtual time, for the operator's real parts to run against.

Everything that happens follows from a seed and from what a test does, so whatever goes wrong can
be seen again. `clock` runs an event loop whose time costs nothing, `apiserver` keeps objects as
the real one does, `network` lies between it and the operator and loses, delays and cuts,
`controllers` are the garbage collector, the scheduler and the kubelets, `process` is one life of
the operator, `watchdog` judges each change, and `world` puts them together.
"""
