"""The language of cards: commands, cryptography, protocols; knows no terminal, database or simulator."""
