-- One enterprise or many: every unique key begins with enterprise_id. Money is BIGINT fen, time UTC ms.

CREATE TABLE member (
    enterprise_id BIGINT NOT NULL CHECK (enterprise_id BETWEEN 1 AND 4294967295),
    member_number TEXT NOT NULL CHECK (length(member_number) BETWEEN 1 AND 16),
    name TEXT NOT NULL CHECK (length(name) <= 64),
    phone_number TEXT CHECK (length(phone_number) BETWEEN 5 AND 16),
    department TEXT NOT NULL DEFAULT '' CHECK (length(department) <= 64),
    groups BIGINT NOT NULL DEFAULT 0 CHECK (groups >= 0),
    valid_from TEXT NOT NULL DEFAULT '' CHECK (length(valid_from) IN (0, 10)),
    valid_until TEXT NOT NULL DEFAULT '' CHECK (length(valid_until) IN (0, 10)),
    state TEXT NOT NULL CHECK (state IN ('active', 'left')),
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, member_number),
    UNIQUE (enterprise_id, phone_number)
);

-- An application of the enterprise on a card (books.md, states).
CREATE TABLE card_application (
    enterprise_id BIGINT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    member_number TEXT NOT NULL,
    kind BIGINT NOT NULL CHECK (kind IN (1, 2)),
    state TEXT NOT NULL CHECK (state IN ('slot', 'issued', 'posted', 'active', 'lost', 'replaced', 'cancelled')),
    slot BIGINT NOT NULL CHECK (slot BETWEEN 1 AND 8),
    key_version BIGINT NOT NULL CHECK (key_version BETWEEN 1 AND 255),
    starts TEXT NOT NULL CHECK (length(starts) = 10),
    expires TEXT NOT NULL CHECK (length(expires) = 10),
    replaces BLOB CHECK (length(replaces) = 8),
    replaced_by BLOB CHECK (length(replaced_by) = 8),
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, card_serial),
    FOREIGN KEY (enterprise_id, member_number) REFERENCES member (enterprise_id, member_number)
);
CREATE UNIQUE INDEX card_usable ON card_application (enterprise_id, member_number)
    WHERE state IN ('issued', 'posted', 'active');
CREATE INDEX card_of_member ON card_application (enterprise_id, member_number, created_ms);

CREATE TABLE card_transition (
    enterprise_id BIGINT NOT NULL,
    transition_id TEXT NOT NULL,
    card_serial BLOB NOT NULL,
    state_from TEXT NOT NULL,
    state_to TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    request_id TEXT,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, transition_id),
    FOREIGN KEY (enterprise_id, card_serial) REFERENCES card_application (enterprise_id, card_serial)
);
-- append only: card_transition
CREATE INDEX card_transition_card ON card_transition (enterprise_id, card_serial, at_ms);

CREATE TABLE terminal (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    kind TEXT NOT NULL CHECK (kind IN ('issuing', 'access', 'attendance', 'pos', 'recharge', 'office')),
    name TEXT NOT NULL CHECK (length(name) <= 64),
    state TEXT NOT NULL CHECK (state IN ('active', 'retired')),
    list_version BIGINT NOT NULL DEFAULT 0 CHECK (list_version >= 0),
    list_seen_ms BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, terminal)
);

-- Journals as collected: each terminal's chain.
CREATE TABLE journal_entry (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    journal_seq BIGINT NOT NULL CHECK (journal_seq >= 1),
    entry BLOB NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    received_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, terminal, journal_seq)
);
-- append only: journal_entry

-- The blacklist over time: an entry stands in versions from_version <= v < until_version.
CREATE TABLE blacklist_version (
    enterprise_id BIGINT NOT NULL,
    version BIGINT NOT NULL CHECK (version >= 1),
    added BIGINT NOT NULL,
    removed BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, version)
);
-- append only: blacklist_version

CREATE TABLE blacklist_entry (
    enterprise_id BIGINT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    from_version BIGINT NOT NULL CHECK (from_version >= 1),
    until_version BIGINT CHECK (until_version > from_version),
    reason BIGINT NOT NULL CHECK (reason BETWEEN 0 AND 4),
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, card_serial, from_version)
);
CREATE UNIQUE INDEX blacklist_standing ON blacklist_entry (enterprise_id, card_serial) WHERE until_version IS NULL;
CREATE INDEX blacklist_from ON blacklist_entry (enterprise_id, from_version);
CREATE INDEX blacklist_until ON blacklist_entry (enterprise_id, until_version);
