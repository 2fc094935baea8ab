#!/usr/bin/env bash
# The same as pipeline.py with bash and curl, for a step of a CI job:
#
#   OCTET=http://127.0.0.1:8000 examples/pipeline/pipeline.sh ENDPOINT MODEL.onnx CALIBRATION.npz EVALUATION.npz [REQUEST.json]
#
# REQUEST.json is sent while nobody else asks. Exit status: 0 promoted, 1 something broke, 3 the gate was not kept,
# 4 taken back. Understands GITHUB_STEP_SUMMARY. Where the server asks for a key, OCTET_KEY has one (read, write, infer).
set -euo pipefail

: "${OCTET:=http://127.0.0.1:8000}" "${MAX_DROP:=0.005}" "${WEIGHT:=5}" "${MIN_AGREEMENT:=0.98}" "${MIN_COMPARED:=200}"
: "${JOB_SECONDS:=3600}" "${CANARY_SECONDS:=900}" "${GITHUB_STEP_SUMMARY:=/dev/null}"
if (($# < 4)); then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
name=$1 model=$2 calibration=$3 evaluation=$4 request=${5:-}

say() { printf '%s\n' "$*" | tee -a "$GITHUB_STEP_SUMMARY"; }
fail() { # status, text
    printf '::error::%s\n' "$2" >&2
    printf '%s\n' "$2" >> "$GITHUB_STEP_SUMMARY"
    exit "$1"
}
# curl with the key, which does not go through its arguments: everybody on the machine can read those.
call() {
    curl --silent --config <([[ -z ${OCTET_KEY:-} ]] || printf 'header = "Authorization: Bearer %s"\n' "$OCTET_KEY") "$@"
}
# A request whose refusal ends the script, with what the server says.
ask() {
    local answer
    answer=$(call --show-error --fail-with-body --max-time 300 "$@") || fail 1 "refused: $answer"
    [[ -z $answer ]] || printf '%s\n' "$answer"
}
# The first string, number or word under a key.
field() { # json, key
    [[ $1 =~ \"$2\":\ *(\"([^\"]*)\"|[^,}\ ]+) ]] || return 0
    [[ ${BASH_REMATCH[1]} == \"* ]] && printf '%s' "${BASH_REMATCH[2]}" || printf '%s' "${BASH_REMATCH[1]}"
}
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 >= b + 0) }'; }
# What an endpoint says of one version: from its number to that of the next.
of_version() { # json, version
    local rest=${1#*\"version\":"$2",}
    printf '%s' "${rest%%\"version\":*}"
}

echo "::group::Upload"
ask --upload-file "$model" "$OCTET/v1/models/$name"
ask --upload-file "$calibration" "$OCTET/v1/datasets/$name-calibration"
ask --upload-file "$evaluation" "$OCTET/v1/datasets/$name-evaluation"
echo "::endgroup::"

echo "::group::Quantize"
job=$(ask "$OCTET/v1/jobs" -d "{\"kind\": \"quantize\", \"model\": \"$name\", \"calibration\": \"$name-calibration\",
    \"evaluation\": \"$name-evaluation\", \"recipe\": {\"gate\": {\"max_drop\": $MAX_DROP}}}")
id=$(field "$job" id) end=$((SECONDS + JOB_SECONDS))
while state=$(field "$job" state); [[ $state == queued || $state == running ]]; do
    ((SECONDS < end)) || fail 1 "job $id has not ended in $JOB_SECONDS s"
    job=$(ask "$OCTET/v1/jobs/$id?wait=10")
    echo "$state $(field "$job" phase)"
done
echo "$job"
echo "::endgroup::"
accuracy=${job#*\"accuracy\":} latency=${job#*\"latency\":}
case $state in
succeeded) ;;
gate_failed) fail 3 "The gate was not kept: float $(field "$accuracy" float), INT8 $(field "$accuracy" int8), at most $MAX_DROP may be lost." ;;
*) fail 1 "The job is $state: ${job#*\"error\":}" ;;
esac
say "| $name | float | INT8 |"
say "|---|---|---|"
say "| $(field "$accuracy" metric) | $(field "$accuracy" float) | $(field "$accuracy" int8) |"
say "| ms | $(field "$latency" float_ms) | $(field "$latency" int8_ms) |"
say ""
artifact=$(field "${job#*\"artifact\":}" id)

echo "::group::Canary"
# 404: there is no such endpoint yet, and the first version gets everything.
status=$(call --output /dev/null --write-out '%{http_code}' "$OCTET/v1/endpoints/$name")
if [[ $status == 404 ]]; then
    ask --request PUT "$OCTET/v1/endpoints/$name" -d "{\"artifact\": \"$artifact\"}"
    echo "::endgroup::"
    say "First version of $name: it answers all requests."
    exit 0
fi
before=$(ask "$OCTET/v1/endpoints/$name")
old=$(field "$before" default_version)
# If-Match: nobody else changed the endpoint in between.
seen=$(ask --request PUT "$OCTET/v1/endpoints/$name" -H "If-Match: \"$(field "$before" revision)\"" \
    -H 'Octet-Reason: pipeline: canary' -d "{\"artifact\": \"$artifact\", \"weight\": $WEIGHT,
    \"shadow\": {\"fraction\": 1.0}, \"rollback\": {\"min_agreement\": $MIN_AGREEMENT, \"max_error_ratio\": 0.05,
    \"min_requests\": $MIN_COMPARED}}")
new=${seen##*\"version\":} new=${new%%,*}
echo "version $new gets $WEIGHT %, version $old the rest"

verdict="" end=$((SECONDS + CANARY_SECONDS))
while [[ -z $verdict ]]; do
    seen=$(ask "$OCTET/v1/endpoints/$name")
    version=$(of_version "$seen" "$new")
    shadow=${version#*\"shadow\":}
    compared=$(field "$shadow" compared) agreement=$(field "$shadow" agreement)
    echo "compared ${compared:-0}, agreement ${agreement:-unknown}"
    if [[ $(field "$version" weight) == 0 ]]; then
        verdict="taken back by the server: $(field "$(ask "$OCTET/v1/endpoints/$name/changes")" reason)"
    elif [[ $(field "$version" state) == UNAVAILABLE ]]; then
        verdict="version $new cannot be loaded: $(field "$version" reason)"
    elif at_least "${compared:-0}" "$MIN_COMPARED"; then
        at_least "$agreement" "$MIN_AGREEMENT" && verdict=promoted || verdict="only $agreement agree with float"
    elif ((SECONDS >= end)); then
        verdict="only ${compared:-0} samples were compared in $CANARY_SECONDS s"
    elif [[ -n $request ]]; then
        # One connection for all of them.
        urls=()
        for _ in {1..200}; do urls+=("$OCTET/v2/models/$name/infer" --output /dev/null); done
        ask --data "@$request" "${urls[@]}"
    else
        sleep 2
    fi
done
to=$([[ $verdict == promoted ]] && echo "$new" || echo "$old")
ask --request PUT "$OCTET/v1/endpoints/$name" -H "Octet-Reason: pipeline: $verdict" \
    -d "{\"routes\": [{\"version\": $to, \"weight\": 100}]}" > /dev/null
echo "::endgroup::"
[[ $verdict == promoted ]] || fail 4 "Version $new of $name: $verdict. Version $old answers again."
say "Version $new of $name agrees with float on $agreement of $compared samples and answers all requests."
