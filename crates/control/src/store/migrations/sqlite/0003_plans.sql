-- Version 3. Recovery plans, and jobs that are part of a plan's job.
CREATE TABLE plans (
    id TEXT PRIMARY KEY,
    vault TEXT NOT NULL REFERENCES vaults (id),
    name TEXT NOT NULL COLLATE NOCASE,
    body TEXT NOT NULL,
    UNIQUE (vault, name)
) STRICT;

-- The plan's job that a job is part of: it has one for each item.
ALTER TABLE jobs ADD COLUMN parent TEXT;
CREATE UNIQUE INDEX jobs_one_a_member ON jobs (parent, item) WHERE parent IS NOT NULL;

-- The plan that a job runs: one at a time.
ALTER TABLE jobs ADD COLUMN plan TEXT;
CREATE INDEX jobs_by_plan ON jobs (plan, created) WHERE plan IS NOT NULL;
CREATE UNIQUE INDEX jobs_one_a_plan ON jobs (plan) WHERE plan IS NOT NULL AND ended IS NULL;
