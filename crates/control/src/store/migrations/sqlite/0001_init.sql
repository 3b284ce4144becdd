-- Version 1. Ids are text, times are milliseconds since 1970, bodies are JSON.
CREATE TABLE vaults (
    id TEXT PRIMARY KEY,
    subscription TEXT NOT NULL COLLATE NOCASE,
    resource_group TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE,
    body TEXT NOT NULL,
    UNIQUE (subscription, resource_group, name)
) STRICT;

CREATE TABLE fabrics (
    id TEXT PRIMARY KEY,
    vault TEXT NOT NULL REFERENCES vaults (id),
    name TEXT NOT NULL COLLATE NOCASE,
    body TEXT NOT NULL,
    UNIQUE (vault, name)
) STRICT;

CREATE TABLE hosts (
    id TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

-- The config server's own host is a member of one fabric of every vault.
CREATE TABLE fabric_hosts (
    fabric TEXT NOT NULL REFERENCES fabrics (id),
    host TEXT NOT NULL REFERENCES hosts (id),
    PRIMARY KEY (fabric, host)
) STRICT;

CREATE TABLE policies (
    vault TEXT NOT NULL REFERENCES vaults (id),
    name TEXT NOT NULL COLLATE NOCASE,
    body TEXT NOT NULL,
    PRIMARY KEY (vault, name)
) STRICT;

CREATE TABLE mappings (
    vault TEXT NOT NULL REFERENCES vaults (id),
    fabric TEXT NOT NULL REFERENCES fabrics (id),
    name TEXT NOT NULL COLLATE NOCASE,
    body TEXT NOT NULL,
    PRIMARY KEY (fabric, name)
) STRICT;

CREATE TABLE machines (
    id TEXT PRIMARY KEY,
    fabric TEXT NOT NULL REFERENCES fabrics (id),
    host TEXT NOT NULL REFERENCES hosts (id),
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (fabric, host, name)
) STRICT;

CREATE TABLE items (
    id TEXT PRIMARY KEY,
    vault TEXT NOT NULL REFERENCES vaults (id),
    fabric TEXT NOT NULL REFERENCES fabrics (id),
    name TEXT NOT NULL COLLATE NOCASE,
    source_host TEXT NOT NULL REFERENCES hosts (id),
    target_host TEXT NOT NULL REFERENCES hosts (id),
    machine TEXT NOT NULL UNIQUE REFERENCES machines (id),
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (fabric, name)
) STRICT;

-- Jobs outlive their item.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    vault TEXT NOT NULL,
    item TEXT,
    lane TEXT NOT NULL,
    created INTEGER NOT NULL,
    ended INTEGER,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_one_a_lane ON jobs (item, lane) WHERE ended IS NULL;
CREATE INDEX jobs_by_vault ON jobs (vault, created);

-- The journal of protection states: every event that was applied to an item.
CREATE TABLE protection_events (
    item TEXT NOT NULL,
    version INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (item, version, number)
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    vault TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_vault ON events (vault, seq);

-- What is known of the newest point when no host is connected. May lag: RPO is then too high.
CREATE TABLE newest_points (
    item TEXT PRIMARY KEY,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE registration_keys (
    hash TEXT PRIMARY KEY,
    fabric TEXT NOT NULL REFERENCES fabrics (id) ON DELETE CASCADE,
    expires INTEGER NOT NULL
) STRICT;
