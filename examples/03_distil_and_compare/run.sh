set -e
faces=${FACES:-synthetic:60x10}
judged=${JUDGED:-synthetic:40x6@9}
epochs=${EPOCHS:-6}
fr-edge distill tiny-teacher --faces "$faces" --set epochs="$epochs" --out teacher.bundle
fr-edge distill tiny --faces "$faces" --teacher teacher.bundle --set epochs="$epochs" --out adadistill.bundle
fr-edge distill tiny --faces "$faces" --teacher teacher.bundle --set epochs="$epochs" \
    --set losses=mse --set output=plain --out features.bundle
for student in adadistill features; do
    fr-edge export $student.bundle --out $student.bundle
    fr-edge build-engine $student.bundle --fp32
    fr-edge evaluate $student.bundle --protocol "$judged" --engine fp32
done
fr-edge compare adadistill.bundle features.bundle
