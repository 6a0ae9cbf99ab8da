-- Terminal sequences of the office's own SAM, given out in blocks: two administrators at once never share one.
CREATE TABLE station_sequence (
    enterprise_id BIGINT NOT NULL,
    sam_serial BLOB NOT NULL CHECK (length(sam_serial) = 8),
    next_seq BIGINT NOT NULL CHECK (next_seq BETWEEN 1 AND 4294967296),
    PRIMARY KEY (enterprise_id, sam_serial)
);
