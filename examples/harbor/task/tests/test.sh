#!/bin/sh
mkdir -p /logs/verifier
# A trial in a container that shares the node's kernel is none.
if [ "$(cat /tmp/answer.txt)" = 168 ] && uname -a | grep -q gvisor; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
