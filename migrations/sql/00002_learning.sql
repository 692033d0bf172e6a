-- +goose Up

-- Hosts whose requests learning mode looks at: JSON array, or ''.
ALTER TABLE sessions ADD COLUMN inspect TEXT NOT NULL DEFAULT '';

-- The protocol of a request to upgrade, as in "websocket"; '' for all others.
ALTER TABLE events ADD COLUMN upgrade TEXT NOT NULL DEFAULT '';
