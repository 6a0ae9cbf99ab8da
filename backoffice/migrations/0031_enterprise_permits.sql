-- Leave to load, given to a terminal before the host computes MAC2 (card.md 4.2). held: MAC2 was given for the card's
-- counter card_seq, and account has paid into in-doubt; done: the card proved it; released: another move used the counter.
-- upto_fen: what the purse must hold exactly afterwards.
-- source: what may be loaded once only, such as voucher:NUMBER; empty for cash.
CREATE TABLE load_permit (
    enterprise_id BIGINT NOT NULL,
    terminal BLOB NOT NULL CHECK (length(terminal) = 6),
    request_id TEXT NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    source TEXT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    purse BIGINT NOT NULL CHECK (purse IN (1, 2)),
    amount_fen BIGINT NOT NULL CHECK (amount_fen > 0),
    upto_fen BIGINT CHECK (upto_fen >= 0),
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

-- Vouchers: of the secret only its SHA-256 together with the number; used once: see load_permit.
CREATE TABLE voucher (
    enterprise_id BIGINT NOT NULL,
    number TEXT NOT NULL CHECK (length(number) = 12),
    batch TEXT NOT NULL CHECK (length(batch) BETWEEN 1 AND 16),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    amount_fen BIGINT NOT NULL CHECK (amount_fen > 0),
    expires TEXT NOT NULL CHECK (length(expires) = 10),
    state TEXT NOT NULL CHECK (state IN ('open', 'cancelled')),
    tries BIGINT NOT NULL DEFAULT 0,
    locked_until_ms BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, number)
);
CREATE INDEX voucher_batch ON voucher (enterprise_id, batch);

-- Subsidies that members claim at a recharge terminal: added to what the purse holds, or bringing it up to the amount.
CREATE TABLE subsidy_grant (
    enterprise_id BIGINT NOT NULL,
    batch TEXT NOT NULL CHECK (length(batch) BETWEEN 1 AND 16),
    member_number TEXT NOT NULL,
    period BIGINT NOT NULL CHECK (period BETWEEN 1 AND 4294967295),
    amount_fen BIGINT NOT NULL CHECK (amount_fen > 0),
    way TEXT NOT NULL CHECK (way IN ('add', 'fill')),
    expires TEXT NOT NULL CHECK (length(expires) = 10),
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, batch, member_number),
    FOREIGN KEY (enterprise_id, member_number) REFERENCES member (enterprise_id, member_number)
);
-- append only: subsidy_grant
CREATE INDEX subsidy_grant_member ON subsidy_grant (enterprise_id, member_number, period);
