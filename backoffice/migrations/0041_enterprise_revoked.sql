-- Installers' tokens that no longer count; the head of each list names them until they would have expired anyway.
CREATE TABLE revoked_token (
    enterprise_id BIGINT NOT NULL,
    token_id BLOB NOT NULL CHECK (length(token_id) BETWEEN 1 AND 32),
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, token_id)
);
