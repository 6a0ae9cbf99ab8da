-- SAMs in terminals over time: a lost one stays listed, its later records are refused.
CREATE TABLE terminal_sam (
    enterprise_id BIGINT NOT NULL,
    sam_serial BLOB NOT NULL CHECK (length(sam_serial) = 8),
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    state TEXT NOT NULL CHECK (state IN ('active', 'lost', 'retired')),
    since_ms BIGINT NOT NULL,
    lost_ms BIGINT,
    PRIMARY KEY (enterprise_id, sam_serial),
    FOREIGN KEY (enterprise_id, terminal) REFERENCES terminal (enterprise_id, terminal)
);
CREATE UNIQUE INDEX terminal_sam_active ON terminal_sam (enterprise_id, terminal) WHERE state = 'active';

-- The stretches of each terminal's journal that are here: one stretch from 1 on is a complete journal.
CREATE TABLE journal_span (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    first_seq BIGINT NOT NULL CHECK (first_seq >= 1),
    last_seq BIGINT NOT NULL CHECK (last_seq >= first_seq),
    last_hash BLOB NOT NULL CHECK (length(last_hash) = 32),
    last_ms BIGINT NOT NULL,
    shift TEXT NOT NULL,
    PRIMARY KEY (enterprise_id, terminal, first_seq)
);

-- Closing entries that came before their intents, in a file of a later stretch.
CREATE TABLE journal_orphan (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    intent_seq BIGINT NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (enterprise_id, terminal, intent_seq)
);

-- One money move as reported. record_id is its origin; digest covers what its intent said, closing what closed it.
-- open = 1: the next settlement looks at it. booked: not, in doubt, for good, or given back.
CREATE TABLE transaction_record (
    enterprise_id BIGINT NOT NULL,
    record_id TEXT NOT NULL CHECK (length(record_id) BETWEEN 1 AND 80),
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    journal_seq BIGINT NOT NULL,
    shift TEXT NOT NULL,
    sam_serial BLOB NOT NULL CHECK (length(sam_serial) = 8),
    terminal_seq BIGINT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    purse BIGINT NOT NULL CHECK (purse IN (1, 2)),
    kind BIGINT NOT NULL CHECK (kind BETWEEN 1 AND 9),
    card_seq BIGINT NOT NULL CHECK (card_seq BETWEEN 0 AND 65535),
    amount_fen BIGINT NOT NULL CHECK (amount_fen BETWEEN 0 AND 4294967295),
    balance_before_fen BIGINT NOT NULL CHECK (balance_before_fen BETWEEN 0 AND 4294967295),
    key_version BIGINT NOT NULL,
    algorithm BIGINT NOT NULL,
    local_time BLOB NOT NULL CHECK (length(local_time) = 7),
    utc_ms BIGINT NOT NULL,
    list_version BIGINT NOT NULL,
    undo_of BLOB NOT NULL,
    request_id TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    outcome BIGINT NOT NULL CHECK (outcome BETWEEN 1 AND 3),
    tac BLOB NOT NULL,
    proven BIGINT NOT NULL CHECK (proven IN (0, 1)),
    closing BLOB CHECK (length(closing) = 32),
    verdict TEXT NOT NULL,
    cause TEXT NOT NULL,
    genuine BIGINT NOT NULL CHECK (genuine IN (0, 1)),
    booked TEXT NOT NULL CHECK (booked IN ('no', 'doubt', 'yes', 'back')),
    chained BIGINT NOT NULL CHECK (chained IN (0, 1)),
    open BIGINT NOT NULL CHECK (open IN (0, 1)),
    undone_by TEXT,
    received_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, record_id)
);
CREATE INDEX record_open ON transaction_record (enterprise_id, card_serial) WHERE open = 1;
CREATE INDEX record_card ON transaction_record (enterprise_id, card_serial, purse, card_seq);
CREATE INDEX record_journal ON transaction_record (enterprise_id, terminal, journal_seq);
CREATE INDEX record_request ON transaction_record (enterprise_id, request_id) WHERE request_id <> '';

-- Reports that contradict what is here already: kept as evidence, never posted.
CREATE TABLE record_conflict (
    enterprise_id BIGINT NOT NULL,
    conflict_id TEXT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    journal_seq BIGINT NOT NULL,
    cause TEXT NOT NULL,
    content BLOB NOT NULL,
    received_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, conflict_id)
);
-- append only: record_conflict

-- What is known of each purse: certain up to these counters, what is missing beyond, what the card said last.
CREATE TABLE purse_position (
    enterprise_id BIGINT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    purse BIGINT NOT NULL CHECK (purse IN (1, 2)),
    balance_fen BIGINT NOT NULL CHECK (balance_fen BETWEEN -1000000000000000 AND 1000000000000000),
    offline_seq BIGINT NOT NULL,
    online_seq BIGINT NOT NULL,
    missing_offline TEXT NOT NULL,
    missing_online TEXT NOT NULL,
    outstanding_fen BIGINT NOT NULL CHECK (outstanding_fen BETWEEN -1000000000000000 AND 1000000000000000),
    said_balance_fen BIGINT CHECK (said_balance_fen BETWEEN 0 AND 4294967295),
    said_offline_seq BIGINT,
    said_online_seq BIGINT,
    said_ms BIGINT,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, card_serial, purse)
);
CREATE INDEX purse_missing ON purse_position (enterprise_id, card_serial)
    WHERE missing_offline <> '' OR missing_online <> '' OR outstanding_fen <> 0;

CREATE TABLE closed_day (
    enterprise_id BIGINT NOT NULL,
    day TEXT NOT NULL CHECK (length(day) = 10),
    operator TEXT NOT NULL,
    accepted TEXT NOT NULL,
    ledger_head BLOB NOT NULL,
    closed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, day)
);
-- append only: closed_day

-- What the back office ordered of a purse, and which account stands against it.
CREATE TABLE money_order (
    enterprise_id BIGINT NOT NULL,
    request_id TEXT NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    kind TEXT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    purse BIGINT NOT NULL CHECK (purse IN (1, 2)),
    amount_fen BIGINT NOT NULL CHECK (amount_fen > 0),
    account TEXT NOT NULL,
    undoes TEXT,
    operator TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, request_id)
);
-- append only: money_order
