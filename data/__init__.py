"""What flows: record types, chat templates, sources, curation blocks, packing and verifiers. No training, no orchestration, no tracking."""
