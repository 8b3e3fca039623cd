"""The order of things: one file a flow. Recipes are parameter sets of flows."""
