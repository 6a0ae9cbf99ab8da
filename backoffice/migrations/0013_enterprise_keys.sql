-- Which key versions a SAM was seen to hold: what rotation counts before a version is destroyed.
CREATE TABLE sam_key (
    enterprise_id BIGINT NOT NULL,
    sam_serial BLOB NOT NULL CHECK (length(sam_serial) = 8),
    purpose BIGINT NOT NULL CHECK (purpose BETWEEN 1 AND 255),
    version BIGINT NOT NULL CHECK (version BETWEEN 1 AND 255),
    kcv BLOB NOT NULL CHECK (length(kcv) = 3),
    loaded_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, sam_serial, purpose, version)
);
