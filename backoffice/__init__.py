"""The enterprise management system: members, cards, books, lists. Meets terminals only in cardlib."""
