-- The platform: which enterprises there are and where they live, chips, phone numbers, slots, SAMs.

CREATE TABLE enterprise (
    enterprise_id BIGINT NOT NULL PRIMARY KEY CHECK (enterprise_id BETWEEN 1 AND 4294967295),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 80),
    state TEXT NOT NULL CHECK (state IN ('active', 'suspended', 'closed')),
    utc_offset_minutes BIGINT NOT NULL CHECK (utc_offset_minutes BETWEEN -720 AND 840),
    database TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE subscription (
    enterprise_id BIGINT NOT NULL REFERENCES enterprise (enterprise_id),
    application TEXT NOT NULL CHECK (application IN ('access', 'attendance', 'payment')),
    state TEXT NOT NULL CHECK (state IN ('active', 'ended')),
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, application)
);

CREATE TABLE serial_counter (
    kind BIGINT NOT NULL CHECK (kind BETWEEN 1 AND 5),
    platform BIGINT NOT NULL CHECK (platform BETWEEN 0 AND 255),
    next BIGINT NOT NULL CHECK (next BETWEEN 1 AND 1099511627776),
    PRIMARY KEY (kind, platform)
);

CREATE TABLE vendor_batch (
    batch_id TEXT NOT NULL PRIMARY KEY,
    vendor TEXT NOT NULL,
    kind BIGINT NOT NULL CHECK (kind BETWEEN 1 AND 5),
    cards BIGINT NOT NULL CHECK (cards > 0),
    digest BLOB NOT NULL UNIQUE,
    received_ms BIGINT NOT NULL
);

CREATE TABLE card (
    serial BLOB NOT NULL PRIMARY KEY CHECK (length(serial) = 8),
    kind BIGINT NOT NULL CHECK (kind BETWEEN 1 AND 5),
    state TEXT NOT NULL CHECK (state IN ('blank', 'washed', 'in use', 'lost', 'cancelled', 'replaced', 'destroyed')),
    chip TEXT UNIQUE,
    batch_id TEXT REFERENCES vendor_batch (batch_id),
    wash_version BIGINT NOT NULL DEFAULT 0 CHECK (wash_version BETWEEN 0 AND 255),
    registered_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL
);

CREATE TABLE slot (
    card_serial BLOB NOT NULL REFERENCES card (serial),
    number BIGINT NOT NULL CHECK (number BETWEEN 1 AND 8),
    enterprise_id BIGINT NOT NULL REFERENCES enterprise (enterprise_id),
    state TEXT NOT NULL CHECK (state IN ('opening', 'open')),
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (card_serial, number),
    UNIQUE (card_serial, enterprise_id)
);

-- One number has at most one card, one card at most one number (requirement D2).
CREATE TABLE phone_number (
    number TEXT NOT NULL PRIMARY KEY CHECK (length(number) BETWEEN 5 AND 16),
    card_serial BLOB NOT NULL UNIQUE REFERENCES card (serial),
    holder TEXT NOT NULL,
    bound_ms BIGINT NOT NULL
);

CREATE TABLE sam (
    serial BLOB NOT NULL PRIMARY KEY CHECK (length(serial) = 8),
    enterprise_id BIGINT NOT NULL REFERENCES enterprise (enterprise_id),
    terminal BLOB CHECK (length(terminal) = 6),
    state TEXT NOT NULL CHECK (state IN ('active', 'lost', 'destroyed')),
    registered_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL
);
