"""Adapters for training hosts that need more than an optimizer object; which hosts do not, docs/integrations.md says."""
