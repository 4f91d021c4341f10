-- The fastest that this PostgreSQL answers anything: one balance by its key.
\set a random(1, :users)
SELECT balance FROM bare_accounts WHERE id = :a;
