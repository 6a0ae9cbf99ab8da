-- Leave to load, given to a terminal before the host computes MAC2 (card.md 4.2). held: MAC2 was given for the card's
-- counter card_seq, and account has paid into in-doubt; done: the card proved it; released: another move used the counter.
-- source: what may be loaded once only, such as voucher:NUMBER; empty for cash.
CREATE TABLE load_permit (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    request_id TEXT NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    source TEXT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    purse BIGINT NOT NULL CHECK (purse IN (1, 2)),
    amount_fen BIGINT NOT NULL CHECK (amount_fen > 0),
    account TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('allowed', 'held', 'done', 'released')),
    card_seq BIGINT,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, terminal, request_id)
);
CREATE UNIQUE INDEX load_permit_once ON load_permit (enterprise_id, source)
    WHERE source <> '' AND state IN ('held', 'done');
CREATE INDEX load_permit_card ON load_permit (enterprise_id, card_serial, purse, card_seq);
