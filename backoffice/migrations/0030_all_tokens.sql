-- Tokens of the HTTP interface: only their SHA-256 is kept. One belongs to a terminal or to an operator.
CREATE TABLE web_token (
    enterprise_id BIGINT NOT NULL,
    token_id TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    terminal BLOB CHECK (length(terminal) = 6),
    operator TEXT,
    made_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    used_ms BIGINT,
    PRIMARY KEY (enterprise_id, token_id),
    UNIQUE (enterprise_id, digest),
    CHECK ((terminal IS NULL) <> (operator IS NULL))
);
