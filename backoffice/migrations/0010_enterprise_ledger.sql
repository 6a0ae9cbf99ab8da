-- Double entry (books.md, Books). An entry's id is its origin, so that a repeat is recognised by the key;
-- seal_seq and seal_hash are filled in once by the sealer.
CREATE TABLE ledger_entry (
    enterprise_id BIGINT NOT NULL,
    entry_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    posted_ms BIGINT NOT NULL,
    operator TEXT NOT NULL,
    second_operator TEXT,
    corrects TEXT,
    note TEXT NOT NULL,
    digest BLOB NOT NULL,
    seal_seq BIGINT,
    seal_hash BLOB,
    PRIMARY KEY (enterprise_id, entry_id)
);
CREATE UNIQUE INDEX ledger_entry_seal ON ledger_entry (enterprise_id, seal_seq);
-- append only: ledger_entry sealed by seal_seq, seal_hash

-- Positive: the account's holder gets it; negative: gives it. One entry's amounts add up to zero.
CREATE TABLE ledger_posting (
    enterprise_id BIGINT NOT NULL,
    entry_id TEXT NOT NULL,
    account TEXT NOT NULL,
    amount_fen BIGINT NOT NULL CHECK (amount_fen <> 0),
    PRIMARY KEY (enterprise_id, entry_id, account),
    FOREIGN KEY (enterprise_id, entry_id) REFERENCES ledger_entry (enterprise_id, entry_id)
);
CREATE INDEX ledger_posting_account ON ledger_posting (enterprise_id, account, amount_fen);
-- append only: ledger_posting

-- Corrections that wait for a second operator; posted ones stay as evidence.
CREATE TABLE ledger_proposal (
    enterprise_id BIGINT NOT NULL,
    entry_id TEXT NOT NULL,
    proposed_ms BIGINT NOT NULL,
    operator TEXT NOT NULL,
    corrects TEXT,
    body BLOB NOT NULL,
    PRIMARY KEY (enterprise_id, entry_id)
);
-- append only: ledger_proposal
