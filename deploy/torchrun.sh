#!/bin/sh
# One node, all of its GPUs. The same command goes on from the last checkpoint, with another number of GPUs too.
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" -m fr_edge distill adadistill-plus \
    --faces "${FACES:-/data/ms1mv2}" --teacher "${TEACHER:-/data/r50/backbone.pth}" \
    --out "${OUT:-student.bundle}" --set teacher_arch=iresnet50 --set cache="${CACHE:-cache}"
