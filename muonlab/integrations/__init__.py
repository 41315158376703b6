"""Adapters for training loops that need more of us than an optimizer object: see docs/integrations.md for the rest."""
