#!/bin/sh
# The words after `docker run ... gpt2-mlx`: training or service, and flags of train.py or serve.py.
set -eu
word=${1:-service}
[ $# -eq 0 ] || shift
case $word in
    training) exec python train.py "$@" ;;
    service) exec python serve.py --host 0.0.0.0 "$@" ;;
    *)
        echo "docker-entrypoint.sh: error: the word is '$word'; it must be training or service" >&2
        exit 2
        ;;
esac
