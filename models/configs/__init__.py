"""Settings of every model stage: frozen pydantic models, importable without torch."""
