set -e
fr-edge accept ${BUNDLE:-} --backend ${BACKEND:-auto} --out accept.json
