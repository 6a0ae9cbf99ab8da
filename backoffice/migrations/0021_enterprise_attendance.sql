-- Every punch as reported, each once. person: card:SERIAL or pin:NUMBER, as the source knows its people. The key begins
-- with the time, so that uploads and months touch few pages. journal_seq is 0 for a device that keeps no journal;
-- verified 0 marks an unverified source.
CREATE TABLE punch (
    enterprise_id BIGINT NOT NULL CHECK (enterprise_id BETWEEN 1 AND 4294967295),
    person TEXT NOT NULL CHECK (length(person) BETWEEN 5 AND 32),
    local_time TEXT NOT NULL CHECK (length(local_time) = 19),
    source TEXT NOT NULL CHECK (length(source) BETWEEN 1 AND 48),
    status BIGINT NOT NULL CHECK (status BETWEEN 0 AND 255),
    verify BIGINT NOT NULL CHECK (verify BETWEEN 0 AND 65535),
    journal_seq BIGINT NOT NULL CHECK (journal_seq >= 0),
    workcode TEXT NOT NULL CHECK (length(workcode) <= 32),
    verified BIGINT NOT NULL CHECK (verified IN (0, 1)),
    received_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, local_time, person, source, status, verify, journal_seq)
);
-- append only: punch

-- Third-party terminals: nothing but their serial number tells them apart, so each is approved by name.
CREATE TABLE adms_device (
    enterprise_id BIGINT NOT NULL,
    device TEXT NOT NULL CHECK (length(device) BETWEEN 1 AND 32),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    state TEXT NOT NULL CHECK (state IN ('approved', 'retired')),
    network TEXT NOT NULL,
    stamp TEXT NOT NULL CHECK (length(stamp) <= 32),
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, device)
);

-- Lines that are no punch: kept aside, or their device would repeat them for ever.
CREATE TABLE adms_bad_line (
    enterprise_id BIGINT NOT NULL,
    device TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    cause TEXT NOT NULL,
    line TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, device, digest)
);
-- append only: adms_bad_line

-- A shift's rule never changes, so that a statement of the past stays what it was: a changed shift has a new name.
CREATE TABLE shift_rule (
    enterprise_id BIGINT NOT NULL,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 32),
    rule TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, name)
);
-- append only: shift_rule

-- Who works which shift from a day on: subject is all, department:NAME or member:NUMBER; seven names, Monday first.
CREATE TABLE shift_plan (
    enterprise_id BIGINT NOT NULL,
    subject TEXT NOT NULL CHECK (length(subject) BETWEEN 3 AND 80),
    from_day TEXT NOT NULL CHECK (length(from_day) = 10),
    week TEXT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, subject, from_day)
);

-- Days that differ from the plan: off, leave, or shift:NAME.
CREATE TABLE shift_day (
    enterprise_id BIGINT NOT NULL,
    subject TEXT NOT NULL CHECK (length(subject) BETWEEN 3 AND 80),
    day TEXT NOT NULL CHECK (length(day) = 10),
    what TEXT NOT NULL CHECK (length(what) BETWEEN 3 AND 40),
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (enterprise_id, subject, day)
);

-- Corrections: proposed by one operator, decided by another. status is a punch's; void takes back what was at a time.
CREATE TABLE punch_correction (
    enterprise_id BIGINT NOT NULL,
    correction_id TEXT NOT NULL CHECK (length(correction_id) BETWEEN 1 AND 64),
    member_number TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('add', 'void')),
    local_time TEXT NOT NULL CHECK (length(local_time) = 19),
    status BIGINT NOT NULL CHECK (status BETWEEN 0 AND 5),
    reason TEXT NOT NULL CHECK (length(reason) BETWEEN 1 AND 200),
    proposed_by TEXT NOT NULL,
    proposed_ms BIGINT NOT NULL,
    decision TEXT CHECK (decision IN ('approved', 'refused')),
    decided_by TEXT,
    decided_ms BIGINT,
    PRIMARY KEY (enterprise_id, correction_id),
    FOREIGN KEY (enterprise_id, member_number) REFERENCES member (enterprise_id, member_number)
);
-- append only: punch_correction sealed by decision, decided_by, decided_ms
CREATE INDEX punch_correction_member ON punch_correction (enterprise_id, member_number, local_time);
