"""The page of `kubectl sandboxpool dashboard`.

The parts, from the top:

- `server` is the web application: who may ask, the pages, and their changes as they come.
- `pages` gathers what a page shows and renders it.
- `model` decides what is shown. It is pure: objects in, rows out.
- `watch` keeps the objects of the cluster in memory, and says how current they are.
- `pruned` keeps of an object only what is shown.

Nothing but `server` needs the packages of the extra `dashboard`; the command imports it when it
runs.
"""
