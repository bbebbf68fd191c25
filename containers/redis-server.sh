#!/bin/sh
# Redis as the ledger needs it: an acknowledged write survives a power loss, and nothing is ever evicted.
# REDIS_PASSWORD comes by the environment and goes in by stdin: every user of the machine can read a command line.
set -eu

: "${REDIS_PASSWORD:?is not set; containers/make-env writes one into .env}"
case $REDIS_PASSWORD in
*[!A-Za-z0-9._~-]*)
  echo "redis: REDIS_PASSWORD may have letters, digits and . _ ~ - only, as it is part of a URL; change it in .env" >&2
  exit 78
  ;;
esac

exec redis-server - <<CONFIG
bind * -::*
port 6379
requirepass $REDIS_PASSWORD
dir /data
save ""
appendonly yes
appendfsync always
maxmemory-policy noeviction
maxclients 20000
tcp-keepalive 60
hash-max-listpack-value 8192
hash-max-listpack-entries 128
CONFIG
