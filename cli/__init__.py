"""The `./kassa` command: running, migrating, verifying and replaying."""
