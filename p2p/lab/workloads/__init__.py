"""Workloads: models and data that the laboratory trains."""
