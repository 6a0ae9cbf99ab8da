-- Notices by short message: one for each event, known by its origin, whatever is settled or gathered again.
-- sending: given to the sender, outcome not known yet. unknown: the centre may have it; it is not sent again by itself.
CREATE TABLE notice (
    enterprise_id BIGINT NOT NULL,
    origin TEXT NOT NULL CHECK (length(origin) BETWEEN 1 AND 100),
    kind TEXT NOT NULL CHECK (kind IN ('payment', 'recharge', 'loss', 'unlock', 'consumption', 'attendance')),
    template TEXT NOT NULL,
    member_number TEXT NOT NULL,
    facts TEXT NOT NULL CHECK (length(facts) <= 1000),
    at_ms BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sending', 'sent', 'unknown', 'rejected', 'dropped')),
    cause TEXT NOT NULL DEFAULT '',
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, origin),
    FOREIGN KEY (enterprise_id, member_number) REFERENCES member (enterprise_id, member_number)
);
CREATE INDEX notice_state ON notice (enterprise_id, state, at_ms);

-- What a member wants: an empty language is the enterprise's; refused kinds with commas between.
CREATE TABLE notice_preference (
    enterprise_id BIGINT NOT NULL,
    member_number TEXT NOT NULL,
    language TEXT NOT NULL CHECK (language IN ('', 'zh', 'en')),
    refused TEXT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, member_number),
    FOREIGN KEY (enterprise_id, member_number) REFERENCES member (enterprise_id, member_number)
);
CREATE INDEX record_booked ON transaction_record (enterprise_id, utc_ms) WHERE booked = 'yes';
