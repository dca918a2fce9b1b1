r"""The kubectl plugin: `kubectl sandboxpool COMMAND`, on the client.

The parts, from the top:

- `main` lists the commands in `COMMANDS` and has the console scripts.
- One module for each command. It is a function with the decorator `command.command`, which gives
  it the options that kubectl has everywhere (-n, --context, --kubeconfig, --request-timeout; -A and
  -o where it asks for them), turns errors into one line on stderr and an exit code, and puts the
  examples into `--help`:

      @command("pools", examples=EXAMPLES, output=True, all_namespaces=True)
      def pools(run: Invocation) -> None:
          '''List pools.'''
          found = run.cluster.list(POOLS, run.scope)
          run.out.objects(found, lambda: table_of(found))

  `Invocation` has `cluster` (connects when it is used first), `namespace`, `scope` (a namespace, or
  None with -A) and `out`. Whatever else a command takes is an argument with typer's annotations.
  What the decorator returns (`pools.pools`) goes into `main.COMMANDS`.
- `output` prints: `Table` with `Column` (`wide=True` only with -o wide) and cells, plain as kubectl
  prints it or by rich in a terminal; objects as json, yaml or names.
- `cluster` reads objects: `Cluster.get`, `list` and `watch`, with the `Resource` values there.
  Tests replace `cluster.connect` by a client of a scripted API server (tests/unit/cli).
- `errors` has the exit codes, and `CommandFailure` for a command's own errors: the message names
  the cause and the cure.
- `times` has ages as kubectl shows them.

Nothing is shown that the API does not say. Only the client and the vocabulary of reasons are
imported, nothing of the operator.
"""
