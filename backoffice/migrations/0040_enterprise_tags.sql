-- Tags that only tell a number: whose a tag is from a day on; an empty member number is nobody's. Days before keep
-- whoever had it then.
CREATE TABLE punch_tag (
    enterprise_id BIGINT NOT NULL,
    uid BLOB NOT NULL CHECK (length(uid) = 5),
    from_day TEXT NOT NULL CHECK (length(from_day) = 10),
    member_number TEXT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, uid, from_day)
);
