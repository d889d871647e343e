#!/usr/bin/env bash
# The proof on one GPU, in one call: see docs/gpu.md. Needs torch, triton, numpy and protobuf; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/client:$PWD/rpc:$PWD/proto/gen${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
