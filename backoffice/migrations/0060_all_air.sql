-- Counters over the air, per card and keyset: the next to send, stored before it is sent, and the last of the menu's
-- that was accepted. Keyset 1 is in the platform's database, that of a slot in its enterprise's (ota.md, Keysets).
CREATE TABLE air_counter (
    enterprise_id BIGINT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    key_set BIGINT NOT NULL CHECK (key_set BETWEEN 1 AND 15),
    sent BIGINT NOT NULL DEFAULT 0,
    accepted BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (enterprise_id, card_serial, key_set)
);
