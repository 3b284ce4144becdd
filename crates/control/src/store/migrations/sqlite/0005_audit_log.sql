-- Version 5. The audit log: each entry's hash covers its number, its body and the hash before it.
CREATE TABLE audit_log (
    number INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
