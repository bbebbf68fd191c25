#!/bin/sh
# One S3 server with one pair of keys, those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and one bucket.
# Its inner ports (filer, master, volume) ask for no password: publish none but 8333.
set -eu

: "${AWS_ACCESS_KEY_ID:?is not set; containers/make-env writes one into .env}"
: "${AWS_SECRET_ACCESS_KEY:?is not set; containers/make-env writes one into .env}"

# weed keeps the options of its last run there, and would prefer them.
rm -f /data/mini.options
exec weed mini -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -s3.port=8333 -bucket="${KELPIE_BUCKET:-kelpie}" \
  -s3.autoCreateBucket=false -master.telemetry=false -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false
