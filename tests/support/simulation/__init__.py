"""A cluster in memory and in virtual time, for the operator's real parts to run against.

Everything that happens follows from a seed and from what a test does, so whatever goes wrong can
be seen again. `clock` runs an event loop whose time costs nothing, `apiserver` keeps objects as
the real one does, with the plugins of `admission`. `network` lies between it and the operator and
loses, delays and cuts (`weather`), and shows late or not at all (`sight`, `stream`). `controllers`
are the garbage collector, the scheduler and an autoscaler, `kubelets` those of all nodes. `process`
is one life of the operator, with a clock of its own (`wallclock`), and `people` and `world` put
them together. `storm` and `faults` draw from a seed what goes wrong.

`watchdog` judges each change; with it `deletions` why ready sandboxes go, by the list in `reasons`,
and `patience` how long claims wait and in which order they are served. `neighbours` compares a
tenant with what he is alone, and `footprint` what is remembered.

`bridgeworld` adds OpenSandbox: its server and CRDs (`opensandbox`), lives of the bridge, and what
runs in the sandboxes (`executors`); `bridgejudge` judges each change, `bridgestorm` makes trouble.
"""
