"""The processes that take work up: Celery workers answer bells, the sweeper looks for what no bell announced."""
