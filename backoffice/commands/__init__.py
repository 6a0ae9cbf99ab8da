"""Commands of the back office, one module a noun; loaded when the noun is named."""
