"""What Kassa knows about money: acceptance, lanes, rules, ledger. Imports neither `api` nor `worker`."""
