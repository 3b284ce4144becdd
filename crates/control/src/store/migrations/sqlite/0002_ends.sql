-- Version 2. A plan has two ends of one kind instead of a source and a target.
UPDATE items SET body = json_remove(json_set(body,
    '$.plan.primary', json_object(
        'host', json_extract(body, '$.plan.source.host'),
        'machine', json_extract(body, '$.machine'),
        'run', json(CASE json_extract(body, '$.plan.source.run.run')
            WHEN 'shut-down' THEN
                json_set(json_extract(body, '$.plan.source.run'), '$.power_off', json('false'))
            ELSE json_extract(body, '$.plan.source.run') END),
        'replica', 'unassigned',
        'run_since', json_extract(body, '$.plan.source.since'),
        'replica_since', 0,
        'base', NULL,
        'stale', json(CASE json_extract(body, '$.plan.source.run.run')
            WHEN 'fenced' THEN 'true' ELSE 'false' END)),
    '$.plan.recovery', json_object(
        'host', json_extract(body, '$.plan.target.host'),
        'machine', json_extract(body, '$.machine'),
        'run', json_object('run', 'unassigned'),
        'replica', json_extract(body, '$.plan.target.wanted'),
        'run_since', 0,
        'replica_since', json_extract(body, '$.plan.target.since'),
        'base', NULL,
        'stale', json('false')),
    '$.plan.branch', json(json_extract(body, '$.plan.source.branch')),
    '$.plan.history', json(json_extract(body, '$.plan.source.branch.parent')),
    '$.plan.resync', json_extract(body, '$.plan.source.resync'),
    '$.plan.instances', json((
        SELECT json_group_array(json_set(value, '$.site', 'recovery'))
        FROM json_each(items.body, '$.plan.instances')))),
    '$.plan.source', '$.plan.target');

-- Items that ended because their migration is complete: there is no way back in them.
CREATE TABLE migrated (
    item TEXT PRIMARY KEY,
    fabric TEXT NOT NULL,
    name TEXT NOT NULL COLLATE NOCASE,
    at INTEGER NOT NULL
) STRICT;
