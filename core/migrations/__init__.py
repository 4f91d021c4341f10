"""The way from an empty database to the schema of `core/tables.py`, by Alembic."""
