-- Batches of chips as their vendors deliver them, keys wrapped as they came; how far the washing of each chip is.

ALTER TABLE vendor_batch ADD COLUMN algorithm BIGINT NOT NULL DEFAULT 0 CHECK (algorithm IN (0, 4));
ALTER TABLE vendor_batch ADD COLUMN key_check BLOB CHECK (length(key_check) = 3);
ALTER TABLE vendor_batch ADD COLUMN wrapped_key BLOB;

CREATE TABLE vendor_chip (
    chip TEXT NOT NULL PRIMARY KEY CHECK (length(chip) BETWEEN 8 AND 32),
    batch_id TEXT NOT NULL REFERENCES vendor_batch (batch_id),
    atr TEXT NOT NULL,
    wrapped_key BLOB NOT NULL
);
-- append only: vendor_chip

CREATE INDEX vendor_chip_batch ON vendor_chip (batch_id);

CREATE INDEX card_batch ON card (batch_id);

CREATE TABLE wash_step (
    job TEXT NOT NULL,
    number BIGINT NOT NULL,
    step TEXT NOT NULL,
    done_ms BIGINT NOT NULL,
    PRIMARY KEY (job, number)
);
-- append only: wash_step
