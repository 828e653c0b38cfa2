set -e
here=$(dirname "$0")
mkdir -p junit
fr-edge verify mine.bundle --engine int8 --faces faces/judging --policy "$here/policy.toml" --junit junit/verify.xml
fr-edge evaluate mine.bundle --protocol faces/judging --engine int8 --junit junit/evaluate.xml
