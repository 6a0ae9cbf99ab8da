"""Every piece of hardware, in software: cards, SAMs, readers and what can go wrong with them."""
