#!/bin/sh
# Several nodes: run it on each of NODES nodes; HEAD is the name of one of them, reachable on port 29500.
# Every node sees faces, cache and bundle under the same paths.
exec torchrun --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:?the first node}:29500" \
    -m fr_edge distill adadistill-plus --faces "${FACES:-/data/ms1mv2}" \
    --teacher "${TEACHER:-/data/r50/backbone.pth}" --out "${OUT:-/shared/student.bundle}" \
    --set teacher_arch=iresnet50 --set cache="${CACHE:-/shared/ms1mv2-r50}"
