#!/usr/bin/env bash
# Smoke tests of llama-server-simulator.py with curl, on the practice set.
#
#     ./test-simulator.sh
#     PYTHON=python3.12 ./test-simulator.sh
#
# Starts simulators on free ports of localhost and stops them again, whatever happens. Prints a line for each
# check; exits 0 if all passed. Needs bash, curl, python3, and the simulator's packages in $PYTHON, which is
# .venv/bin/python beside this script if that exists and python3 otherwise.

set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    if [ -x "$here/.venv/bin/python" ]; then python=$here/.venv/bin/python; fi
fi

START_SECONDS=60
STOP_SECONDS=10
REQUEST_SECONDS=20
pid=""
passed=0
failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/test-simulator.XXXXXX") || exit 1

# ---- simulators ------------------------------------------------------------------------------------

running() {
    kill -0 "$1" 2>/dev/null
}

# stop: end the simulator that runs, at last by force; gives its exit code.
stop() {
    local ending=$pid deadline=$((SECONDS + STOP_SECONDS))
    pid=""
    kill "$ending" 2>/dev/null
    while running "$ending" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.05; done
    if running "$ending"; then kill -9 "$ending"; fi
    wait "$ending" 2>/dev/null
}

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    if [ -n "$pid" ]; then stop; fi
    rm -rf "$work"
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start OPTION...: start a simulator, after the end of the one before; sets `url` once it says that it is healthy.
start() {
    local deadline=$((SECONDS + START_SECONDS))
    if [ -n "$pid" ]; then stop; fi
    "$python" "$here/llama-server-simulator.py" --dataset practice --port 0 "$@" \
        >"$work/out" 2>"$work/err" </dev/null &
    pid=$!
    url=""
    while [ -z "$url" ] || ! fetch "$url/health" >/dev/null 2>&1; do
        if ! running "$pid" || [ "$SECONDS" -ge "$deadline" ]; then
            echo "FAIL the simulator at $* did not start:" >&2
            cat "$work/out" "$work/err" >&2
            exit 1
        fi
        sleep 0.05
        url=$(sed -n 's/^Server running on //p' "$work/out")
    done
}

# ---- requests --------------------------------------------------------------------------------------

fetch() {
    curl --silent --show-error --noproxy '*' --max-time "$REQUEST_SECONDS" "$@"
}

# chat FILE [CURL-OPTION...]: post the body in that file; prints what comes back, and the status on a line of its own.
chat() {
    fetch --write-out '\n%{http_code}\n' --header 'Content-Type: application/json' \
        --data-binary "@$1" "${@:2}" "$url/v1/chat/completions"
}

# field EXPRESSION <REPLY: what a Python expression finds in a reply.
field() {
    python3 -c 'import json, sys; reply = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"
}

# Write body-1.json, body-2.json, ... and expected.txt from the practice set, and three other bodies.
write_requests() {
    python3 - "$here/data/practice.jsonl" "$work" <<'PYTHON'
import json, sys
from pathlib import Path

source, work = Path(sys.argv[1]), Path(sys.argv[2])
rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(name, prompt, **fields):
    body = {"messages": [{"role": "user", "content": prompt}], **fields}
    (work / name).write_text(json.dumps(body), encoding="utf-8")


for number, row in enumerate(rows, 1):
    write(f"body-{number}.json", row["question"] + "\n\nPut your final answer within \\boxed{}.")
write("stream.json", rows[0]["question"], stream=True)
write("unknown.json", "Find the number of ways to tile a board of 3 by 12 squares with dominoes, none of them upright.")
(work / "malformed.json").write_text('{"messages": [', encoding="utf-8")
(work / "expected.txt").write_text("".join(f"{row['answer']}\n" for row in rows), encoding="utf-8")
PYTHON
}

# outcome <REPLY: what a reply amounts to: "200 answer 42", "400 error invalid_request_error", or "200 nothing".
outcome() {
    python3 -c '
import json, re, sys

*body, status = sys.stdin.read().rstrip("\n").split("\n")
try:
    reply = json.loads("\n".join(body))
except ValueError:
    reply = {}
choices, error = reply.get("choices"), reply.get("error")
boxed = re.findall(r"\\boxed\{(-?\d+)\}", choices[0]["message"]["content"]) if choices else []
if error and not choices:
    print(status, "error", error["type"])
else:
    print(status, "answer " + boxed[0] if len(boxed) == 1 and not error else "nothing")
'
}

# assembled <STREAM: the boxed answer that the deltas add up to, and the last event.
assembled() {
    python3 -c '
import json, re, sys

*events, status = [line for line in sys.stdin.read().split("\n") if line]
deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]]
content = "".join(delta.get("content") or "" for delta in deltas)
print(status, "answer", *re.findall(r"\\boxed\{(-?\d+)\}", content), events[-1])
'
}

# ---- checks ----------------------------------------------------------------------------------------

# check NAME WANTED GOT
check() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok   $1"
    else
        failed=$((failed + 1))
        echo "FAIL $1: wanted '$2', got '$3'"
    fi
}

write_requests || exit 1
total=$(($(wc -l <"$work/expected.txt")))
first=$(sed -n 1p "$work/expected.txt")

start --success-rate 1
check "health" '{"status":"ok"}' "$(fetch "$url/health")"
check "models" "simulator" "$(fetch "$url/v1/models" |
    python3 -c 'import json, sys; print(*[model["id"] for model in json.load(sys.stdin)["data"]])')"
check "a known question at rate 1 gets the expected answer" \
    "200 answer $first" "$(chat "$work/body-1.json" | outcome)"
check "a stream adds up to the same answer and ends in [DONE]" \
    "200 answer $first data: [DONE]" "$(chat "$work/stream.json" | assembled)"
check "an unknown question gets an error and no answer" \
    "400 error invalid_request_error" "$(chat "$work/unknown.json" | outcome)"
check "malformed JSON gets an error" \
    "500 error server_error" "$(chat "$work/malformed.json" | outcome)"
stop
check "SIGTERM stops it with exit code 0" 0 "$?"

start --success-rate 0
check "a known question at rate 0 gets the expected answer plus one" \
    "200 answer $((first + 1))" "$(chat "$work/body-1.json" | outcome)"

start --success-rate 0.8
right=0
number=0
while read -r answer; do
    number=$((number + 1))
    if [ "$(chat "$work/body-$number.json" | outcome)" = "200 answer $answer" ]; then right=$((right + 1)); fi
done <"$work/expected.txt"
check "a whole pass at rate 0.8 is right 24 times out of 30" "24 of 30" "$right of $total"

check "and the simulator expects a perfect evaluator to report just that" "24 of 30" \
    "$(fetch "$url/simulator/expected" | field '"{correct} of {deliveries}".format(**reply)')"
check "a reset begins anew" "ok 0" "$(fetch --request POST "$url/simulator/reset" | field 'reply["status"]') \
$(fetch "$url/simulator/expected" | field 'reply["deliveries"]')"

start --success-rate 1 --api-key sk-test --fault 500:0,close:0 --fault-first 2
check "without the key it refuses" "401 error authentication_error" "$(chat "$work/body-1.json" | outcome)"
key=(--header "Authorization: Bearer sk-test")
check "a fault is the first reply" "500 error server_error" "$(chat "$work/body-1.json" "${key[@]}" | outcome)"
check "a broken connection the second" "000 nothing" "$(chat "$work/body-1.json" "${key[@]}" 2>/dev/null | outcome)"
check "the third is right" "200 answer $first" "$(chat "$work/body-1.json" "${key[@]}" | outcome)"
check "the log tells all three" "500 close None" "$(fetch "${key[@]}" "$url/simulator/log" |
    field '" ".join(str(entry["fault"]) for entry in reply)')"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
