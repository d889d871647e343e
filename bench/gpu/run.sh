#!/usr/bin/env bash
# Measures one GPU (docs/gpu.md). Needs torch, triton, numpy and protobuf; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
<<<<<<< HEAD
export PYTHONPATH="$PWD:$PWD/rpc:$PWD/proto/gen${PYTHONPATH:+:$PYTHONPATH}"
=======
export PYTHONPATH="$PWD:$PWD/client:$PWD/rpc:$PWD/proto/gen${PYTHONPATH:+:$PYTHONPATH}"
>>>>>>> main
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
