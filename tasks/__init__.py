"""Stages as Prefect tasks, and what carries them: store, key, locks, process, tracking."""
