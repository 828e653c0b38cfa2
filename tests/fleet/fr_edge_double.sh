#!/bin/sh
# A double of the program fr-edge on a board: it writes down its command line and does as $HOME/behaviour
# tells, a shell script. Without it every command ends well. Nothing is built or measured.
echo "$*" >>"$HOME/calls"
command=$1
[ -e "$HOME/behaviour" ] && . "$HOME/behaviour"
case $command in
unpack) mkdir -p "$4" && echo '{}' >"$4/bundle.json" && echo '{"files": 1}' ;;
accept) echo '{"left": []}' >"$4" ;;
doctor) cat "$HOME/doctor.json" ;;
verify) cat "$HOME/verify.json" && grep -q '"passed": true' "$HOME/verify.json" ;;
benchmark) cat "$HOME/benchmark.json" ;;
*) echo '{}' ;;
esac
