"""What runs in a terminal: tap loop, journal, policy, and the five kinds on top of them."""
