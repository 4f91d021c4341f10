#!/usr/bin/env bash
# The README's tour: each command, then what it answered. Needs a Kassa on $KASSA (default http://127.0.0.1:8000).
set -euo pipefail
export KASSA=${KASSA:-http://127.0.0.1:8000} JSON='Content-Type: application/json'

say() { printf '$ %s\n' "$1"; eval "$1"; printf '\n\n'; }
token() { curl -s "$KASSA/v1/auth/login" -H "$JSON" -d "{\"username\": \"$1\", \"password\": \"correct horse\"}" |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])'; }

say 'curl -s $KASSA/v1/auth/register -H "$JSON" -d '\''{"username": "alice", "password": "correct horse"}'\'''
curl -s "$KASSA/v1/auth/register" -H "$JSON" -d '{"username": "bob", "password": "correct horse"}' >/dev/null
export ALICE="Authorization: Bearer $(token alice)" BOB="Authorization: Bearer $(token bob)"
say 'curl -si $KASSA/v1/operations -H "$ALICE" -H "$JSON" -H "Idempotency-Key: salary-11" -d '\''{"type": "deposit", "amount": 10050}'\'''
say 'curl -s $KASSA/v1/operations -H "$ALICE" -H "$JSON" -H "Prefer: wait=5" -d '\''{"type": "transfer", "amount": 5000, "to_username": "bob", "comment": "rent"}'\'''
say 'curl -s $KASSA/v1/operations -H "$ALICE" -H "$JSON" -H "Prefer: wait=5" -d '\''{"type": "withdrawal", "amount": 999999}'\'''
say 'curl -s $KASSA/v1/balance -H "$ALICE"'
say 'curl -s "$KASSA/v1/operations?limit=1" -H "$BOB"'
say 'curl -s $KASSA/v1/operations -H "$ALICE" -H "$JSON" -d '\''{"type": "deposit", "amount": "100"}'\'''
