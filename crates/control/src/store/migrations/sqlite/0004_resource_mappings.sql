-- Version 4. Which network, and which storage, of a fabric is which one of another fabric.
CREATE TABLE resource_mappings (
    vault TEXT NOT NULL REFERENCES vaults (id),
    kind TEXT NOT NULL,
    fabric TEXT NOT NULL REFERENCES fabrics (id) ON DELETE CASCADE,
    object TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE,
    target TEXT NOT NULL REFERENCES fabrics (id) ON DELETE CASCADE,
    target_object TEXT NOT NULL,
    PRIMARY KEY (kind, fabric, object, name),
    UNIQUE (kind, fabric, object, target)
) STRICT;
CREATE INDEX resource_mappings_by_vault ON resource_mappings (vault);
