-- A card's way from one key set to another: written before its first key is replaced, done_ms once all are proven.
-- Until then the card may hold keys of both versions; how long a version was in use is told by the last way out of it.
CREATE TABLE card_key_change (
    enterprise_id BIGINT NOT NULL,
    change_id TEXT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    version_from BIGINT NOT NULL CHECK (version_from BETWEEN 1 AND 255),
    version_to BIGINT NOT NULL CHECK (version_to BETWEEN 1 AND 255),
    begun_ms BIGINT NOT NULL,
    done_ms BIGINT,
    PRIMARY KEY (enterprise_id, change_id),
    FOREIGN KEY (enterprise_id, card_serial) REFERENCES card_application (enterprise_id, card_serial)
);
CREATE INDEX card_key_change_card ON card_key_change (enterprise_id, card_serial, done_ms);
CREATE INDEX card_application_key ON card_application (enterprise_id, key_version);
