-- Mother cards and the authentication card of each: one pair per enterprise that is not replaced (requirement B2).

CREATE TABLE mother_card (
    serial BLOB NOT NULL PRIMARY KEY CHECK (length(serial) = 8),
    enterprise_id BIGINT NOT NULL REFERENCES enterprise (enterprise_id),
    authentication_serial BLOB NOT NULL UNIQUE CHECK (length(authentication_serial) = 8),
    state TEXT NOT NULL CHECK (state IN ('making', 'made', 'replaced')),
    changed_ms BIGINT NOT NULL
);

CREATE UNIQUE INDEX mother_card_in_use ON mother_card (enterprise_id) WHERE state <> 'replaced';
