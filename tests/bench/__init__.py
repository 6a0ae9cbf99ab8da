"""Figures of speed and memory, each with the ratio that makes it comparable between machines."""
