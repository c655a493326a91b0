#!/bin/sh
# What a container starts: rlhf-gym, with its pages where the container can publish them (see docs/container.md).
# What is said on the command line comes later, and wins.
case "$1" in
  run | resume | serve)
    command=$1
    shift
    exec rlhf-gym "$command" --host 0.0.0.0 --port 8000 --no-browser "$@"
    ;;
esac
exec rlhf-gym "$@"
