"""The only importer of ``cryptography``: keys of the card suites, and what stores and lists need."""

from cardlib.crypto.keys import Algorithm, Key, SessionSeed, make_key

__all__ = ["Algorithm", "Key", "SessionSeed", "make_key"]
