set -e
mkdir -p evidence/desk
cp mine.bundle/reports/verify-*.json evidence/desk
fr-edge doctor --json > evidence/desk/doctor.json
fr-edge fleet report evidence
