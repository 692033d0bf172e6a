-- +goose Up

-- Whether a person is asked about what only the default deny refuses.
ALTER TABLE sessions ADD COLUMN ask INTEGER NOT NULL DEFAULT 0 CHECK (ask IN (0, 1));
