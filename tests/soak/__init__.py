"""Seeded days with faults, as many as wished."""
