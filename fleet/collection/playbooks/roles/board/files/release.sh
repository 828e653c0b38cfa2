#!/bin/sh
# What a roll-out does on a board, in the folder ROOT:
#
#   releases/RELEASE/bundle     the bundle, with the engines that were built here
#   releases/RELEASE/evidence   what each step printed: NAME.json
#   releases/RELEASE/evidence.json  all of it in one file, which is fetched
#   releases/RELEASE/done       the command line of each step that has ended well
#   current, previous           links to releases; each is switched by one rename
#   lock                        held by the process that works here
#
# A step that has ended well with the same command line is not repeated. Prints "changed" and "failed STEP"
# in lines; ends with 0 for PASSED, 1 for another verdict, 4 when a step failed, 75 when
# another roll-out is at work.
set -u -f
verb=$1
here=releases/$RELEASE
verdict=0

refuse() { # MESSAGE
    echo "refused: $1"
    exit 75
}

switch_to() { # RELEASE'S FOLDER, LINK
    ln -sfn "$1" "$2.new" && mv -T "$2.new" "$2"
}

ends() { # CODE: gathers what the steps printed, each by its name
    separator=
    {
        printf '{"evidence": {'
        for name in $(ls "$here/evidence"); do
            printf '%s\n"%s": ' "$separator" "${name%.json}"
            cat "$here/evidence/$name"
            separator=,
        done
        echo '}}'
    } >"$here/.evidence.new" && mv "$here/.evidence.new" "$here/evidence.json"
    exit "$1"
}

# Runs a command line unless it has ended well before; what it prints is evidence.
step() { # NAME COMMAND...
    name=$1
    shift
    key=$*
    [ -z "$policy" ] || case $key in *"$policy"*) key="$key $(cksum <"${policy#--policy }")" ;; esac
    if [ "$(cat "$here/done/$name" 2>/dev/null)" = "$key" ]; then return 0; fi
    rm -f "$here/done/$name"
    "$@" >"$here/.$name.new" 2>"$here/log/$name"
    code=$?
    if [ ! -s "$here/.$name.new" ]; then
        text=$(tail -n 1 "$here/log/$name" | tr -cd '[:alnum:] .,:;/_=-' | cut -c 1-200)
        [ $code -eq 0 ] || echo "{\"error\": \"$name ended with $code: $text\", \"exit_code\": $code}" >"$here/.$name.new"
    fi
    mv "$here/.$name.new" "$here/evidence/$name.json"
    sync
    case $code in
    0) echo "$key" >"$here/done/$name" && echo changed && return 0 ;;
    1) case $name in verify-* | benchmark-*) verdict=1 && return 0 ;; esac ;;
    esac
    echo "failed $name"
    ends 4
}

# A budget of minutes may end before everything was tried: the same command goes on.
acceptance() {
    options=
    [ "$BACKEND" = auto ] || options="--backend $BACKEND"
    key="$BACKEND"
    if [ "$(cat "$here/done/accept" 2>/dev/null)" = "$key" ]; then return 0; fi
    for try in 1 2 3; do
        "$FR_EDGE" accept "$here/bundle" --out "$here/evidence/accept.json" $options --json -q >"$here/.accept.new" 2>"$here/log/accept"
        code=$?
        echo changed
        case $code in
        0) echo "$key" >"$here/done/accept" && return 0 ;;
        1) grep -q '"left": \[\]' "$here/evidence/accept.json" 2>/dev/null && break ;;
        *) # the file is of another version, say: begin anew, and keep the error where that fails too
            mv "$here/.accept.new" "$here/evidence/accept.json"
            [ $try = 3 ] || rm -f "$here/evidence/accept.json"
            ;;
        esac
    done
    verdict=1
}

case $ROOT in '~/'*) ROOT=$HOME/${ROOT#'~/'} ;; esac
cd && cd "$ROOT" || refuse "this board has no release before the current one: roll another bundle out"
exec 9>>lock
flock -n 9 || refuse "another roll-out is at work on this board: wait until it has ended"

if [ "$verb" = roll-back ]; then
    [ -L previous ] || refuse "this board has no release before the current one: roll another bundle out"
    if [ "$(readlink previous)" != "$(readlink current)" ]; then
        switch_to "$(readlink previous)" current && echo changed
    fi
    exit 0
fi

mkdir -p "$here/evidence" "$here/done" "$here/log"
find "$here/evidence" -name '*.json' -size 0 -delete
if [ ! -e "$here/bundle/bundle.json" ]; then
    set -- "$here/pack.frb" --out "$here/bundle"
    [ "$TRUST" = yes ] && set -- "$@" --trust "$here/trust.pub"
    [ "$UNSIGNED" = yes ] && set -- "$@" --allow-unsigned
    policy=
    step unpack "$FR_EDGE" unpack "$@" --json -q
    cp "$here/bundle/policy.toml" "$here/own-policy.toml" 2>/dev/null || : >"$here/own-policy.toml"
fi
rm -f "$here/pack.frb"
# A bundle keeps the policy that it was judged by last; without one of the roll-out its own one holds again.
policy=
if [ "$POLICY" = yes ]; then
    policy="--policy $here/policy.toml"
    : >"$here/policed"
elif [ -e "$here/policed" ]; then
    policy="--policy $here/own-policy.toml"
fi
for precision in $PRECISIONS; do
    step "build-$precision" "$FR_EDGE" build-engine "$here/bundle" "--$precision" --backend "$BACKEND" --json -q
done
[ "$ACCEPT" = yes ] && acceptance
for precision in $PRECISIONS; do
    step "verify-$precision" "$FR_EDGE" verify "$here/bundle" --engine "$precision" --backend "$BACKEND" $policy $VERIFY_OPTIONS --json -q
    step "benchmark-$precision" "$FR_EDGE" benchmark "$here/bundle" --engine "$precision" --backend "$BACKEND" $policy --allow-invalid $BENCHMARK_OPTIONS --json -q
done
[ $verdict -eq 0 ] || ends 1
if [ "$(readlink current 2>/dev/null)" != "$here" ]; then
    if [ -L current ]; then switch_to "$(readlink current)" previous || ends 4; fi
    switch_to "$here" current || ends 4
    echo changed
    set +f
    for release in releases/*; do # all but these two were replaced before
        case $release in "$here" | "$(readlink previous 2>/dev/null)") ;; *) rm -rf "$release" ;; esac
    done
fi
ends 0
