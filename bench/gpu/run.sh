#!/usr/bin/env bash
# Measures one GPU (docs/gpu.md). Needs torch, triton, numpy and protobuf; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/rpc:$PWD/proto/gen${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
