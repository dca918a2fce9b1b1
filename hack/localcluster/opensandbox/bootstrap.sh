#!/bin/sh
# Stands in for upstream's script of this name: execd runs beside the command and ends with it.
"${EXECD:-/opt/opensandbox/execd}" &
exec "$@"
