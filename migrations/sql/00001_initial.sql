-- +goose Up

-- Times are microseconds since 1970 in UTC; NULL is "never" or "not known".

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: a sequence number is never given out twice, not even after
-- the row that had it is gone. The order of sessions rests on it.
CREATE TABLE sessions (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    container   TEXT NOT NULL,
    created     INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    ttl         INTEGER NOT NULL,            -- microseconds; what a heartbeat extends it by
    ended       INTEGER,                     -- when; NULL: not ended
    allow_all   INTEGER NOT NULL CHECK (allow_all IN (0, 1)),
    policy_name TEXT NOT NULL,
    policy_text TEXT NOT NULL,
    labels      TEXT NOT NULL                -- JSON object
) STRICT;
CREATE INDEX sessions_container ON sessions (container, seq);

-- Rules of both kinds: global ones have no session. A session's rules have no
-- expiry of their own; theirs is the session's.
CREATE TABLE rules (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    session     INTEGER REFERENCES sessions (seq) ON DELETE CASCADE,
    container   TEXT NOT NULL,
    destination TEXT NOT NULL,
    ports       TEXT NOT NULL,
    transport   TEXT NOT NULL,
    binaries    TEXT NOT NULL,               -- JSON array
    action      TEXT NOT NULL CHECK (action IN ('allow', 'deny')),
    expires     INTEGER,
    created     INTEGER NOT NULL,
    last_used   INTEGER,
    notes       TEXT NOT NULL,
    CHECK (session IS NULL OR expires IS NULL)
) STRICT;
CREATE INDEX rules_session ON rules (session);

CREATE TABLE policies (
    name    TEXT PRIMARY KEY,
    text    TEXT NOT NULL,
    updated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE attachments (
    container_id TEXT PRIMARY KEY,
    ref          TEXT NOT NULL,
    name         TEXT NOT NULL,
    runtime      TEXT NOT NULL,
    netns        TEXT NOT NULL,
    netns_path   TEXT NOT NULL,
    interfaces   TEXT NOT NULL,              -- JSON array
    closed       TEXT NOT NULL,              -- JSON array
    started      INTEGER,
    attached     INTEGER NOT NULL,
    desired      TEXT NOT NULL CHECK (desired IN ('attached', 'detached'))
) STRICT, WITHOUT ROWID;

-- What a container's lookups were answered, so that a restarted daemon still
-- knows the names of its connections.
CREATE TABLE names (
    container_id TEXT NOT NULL REFERENCES attachments (container_id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    address      TEXT NOT NULL,
    expires      INTEGER NOT NULL,
    PRIMARY KEY (container_id, name, address)
) STRICT, WITHOUT ROWID;

-- Container ids are 64 bytes and there is one in every event: kept once.
CREATE TABLE event_containers (
    key  INTEGER PRIMARY KEY,
    id   TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (id, name)
) STRICT;

CREATE TABLE events (
    id          INTEGER PRIMARY KEY,
    time        INTEGER NOT NULL,
    container   INTEGER NOT NULL,            -- event_containers.key
    type        TEXT NOT NULL,
    session_id  TEXT NOT NULL,
    verdict     TEXT NOT NULL,
    layer       TEXT NOT NULL,
    rule_id     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    host        TEXT NOT NULL,
    address     TEXT NOT NULL,
    port        INTEGER NOT NULL,
    transport   TEXT NOT NULL,
    binary      TEXT NOT NULL,
    method      TEXT NOT NULL,
    path        TEXT NOT NULL,
    operations  TEXT NOT NULL,               -- JSON array, or ''
    bytes_in    INTEGER NOT NULL,
    bytes_out   INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    would       TEXT NOT NULL                -- JSON object, or ''
) STRICT;
CREATE INDEX events_container ON events (container, id);
CREATE INDEX events_denied ON events (container, id) WHERE verdict = 'deny';
