# Every example on the stand-ins, in the working directory; what CI runs.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python "$here/stand_ins.py"
python "$here/01_chain_in_python/chain.py"
sh "$here/02_own_onnx_to_certificate/run.sh"
FACES=synthetic:40x8 JUDGED=synthetic:12x3@9 EPOCHS=1 sh "$here/03_distil_and_compare/run.sh"
sh "$here/04_ci_gate/certify.sh"
python "$here/05_compare_two_photographs/compare.py" mine.bundle faces/judging/person000/0.png faces/judging/person000/1.png
if python "$here/05_compare_two_photographs/compare.py" mine.bundle faces/judging/person000/0.png faces/judging/person001/0.png; then
    echo "two people were taken for one"
    exit 1
fi
python "$here/06_gallery_and_migration/gallery.py" mine.bundle faces/judging
BACKEND=onnxruntime sh "$here/07_jetson_acceptance/accept.sh"
sh "$here/08_package_for_cpp/run.sh"
sh "$here/09_fleet/report.sh"
echo "every example ran"
