-- What both schemas have. In the platform's database enterprise_id 0 stands for the platform itself.
-- Every unique key begins with enterprise_id, so that one enterprise never leaves its shard.

CREATE TABLE operator (
    enterprise_id BIGINT NOT NULL CHECK (enterprise_id BETWEEN 0 AND 4294967295),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 32),
    role TEXT NOT NULL CHECK (role IN ('platform', 'administrator', 'issuer', 'finance', 'auditor')),
    state TEXT NOT NULL CHECK (state IN ('active', 'disabled')),
    salt BLOB NOT NULL,
    verifier BLOB NOT NULL,
    failures BIGINT NOT NULL DEFAULT 0,
    locked_until_ms BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, name)
);

CREATE TABLE audit_event (
    enterprise_id BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    event TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL,
    number BIGINT,
    hash BLOB,
    PRIMARY KEY (enterprise_id, event_id),
    UNIQUE (enterprise_id, number)
);
-- append only: audit_event sealed by number, hash
CREATE INDEX audit_unsealed ON audit_event (enterprise_id, event_id) WHERE number IS NULL;
CREATE INDEX audit_subject ON audit_event (enterprise_id, subject, event_id);

-- The first outcome of each request id.
CREATE TABLE request (
    enterprise_id BIGINT NOT NULL,
    request_id TEXT NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    command TEXT NOT NULL,
    arguments_digest BLOB NOT NULL,
    outcome TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, request_id)
);
-- append only: request

-- Journaled jobs: what a crash interrupts, the next run continues. begun_id sorts by time and call.
CREATE TABLE job (
    enterprise_id BIGINT NOT NULL,
    job_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    arguments TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
    outcome TEXT NOT NULL DEFAULT '{}',
    request_id TEXT,
    actor TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '',
    lease_until_ms BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, job_id),
    UNIQUE (enterprise_id, request_id)
);
CREATE UNIQUE INDEX job_running ON job (enterprise_id, kind, subject) WHERE state = 'running';

CREATE TABLE job_step (
    enterprise_id BIGINT NOT NULL,
    job_id TEXT NOT NULL,
    step TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'done')),
    result TEXT NOT NULL DEFAULT '{}',
    attempts BIGINT NOT NULL DEFAULT 1,
    begun_id TEXT NOT NULL,
    done_ms BIGINT,
    PRIMARY KEY (enterprise_id, job_id, step),
    FOREIGN KEY (enterprise_id, job_id) REFERENCES job (enterprise_id, job_id)
);

-- Events to application subsystems, delivered until acknowledged.
CREATE TABLE outbox_subsystem (
    enterprise_id BIGINT NOT NULL,
    subsystem TEXT NOT NULL CHECK (length(subsystem) BETWEEN 1 AND 32),
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, subsystem)
);

CREATE TABLE outbox_event (
    enterprise_id BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    topic TEXT NOT NULL,
    body TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, event_id)
);
-- append only: outbox_event

CREATE TABLE outbox_delivery (
    enterprise_id BIGINT NOT NULL,
    subsystem TEXT NOT NULL,
    event_id TEXT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    acknowledged_ms BIGINT,
    PRIMARY KEY (enterprise_id, subsystem, event_id),
    FOREIGN KEY (enterprise_id, subsystem) REFERENCES outbox_subsystem (enterprise_id, subsystem),
    FOREIGN KEY (enterprise_id, event_id) REFERENCES outbox_event (enterprise_id, event_id)
);
CREATE INDEX outbox_open ON outbox_delivery (enterprise_id, subsystem, event_id) WHERE acknowledged_ms IS NULL;

CREATE TABLE setting (
    enterprise_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL CHECK (length(value) <= 4096),
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, name)
);
