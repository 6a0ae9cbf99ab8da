-- What cards are to be told over the air. Times of wrong service passwords from the menu close that way for a number.
CREATE TABLE air_job (
    enterprise_id BIGINT NOT NULL,
    air_id TEXT NOT NULL,
    card_serial BLOB NOT NULL CHECK (length(card_serial) = 8),
    kind TEXT NOT NULL,
    arguments TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'sent', 'proven', 'failed', 'unknown', 'cancelled')),
    attempts BIGINT NOT NULL DEFAULT 0,
    due_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL DEFAULT '{}',
    trouble TEXT NOT NULL DEFAULT '',
    request_id TEXT,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '',
    lease_until_ms BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, air_id),
    UNIQUE (enterprise_id, request_id)
);

CREATE INDEX air_job_open ON air_job (enterprise_id, due_ms) WHERE state IN ('queued', 'sent', 'unknown');
CREATE INDEX air_job_card ON air_job (enterprise_id, card_serial, air_id);

CREATE TABLE air_password (
    enterprise_id BIGINT NOT NULL,
    number TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, number, attempt_id)
);

-- By which a member proves himself from the SIM's menu: Argon2id.
CREATE TABLE service_password (
    enterprise_id BIGINT NOT NULL,
    member_number TEXT NOT NULL,
    salt BLOB NOT NULL CHECK (length(salt) = 16),
    verifier BLOB NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, member_number)
);
