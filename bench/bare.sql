-- What Kassa is compared with: the bare minimum by hand. Two rows locked in order, both updated, two lines of history.
-- With one payer, one account is in every transaction.
\set a random(1, :payers)
\set b random(1, :users)
\set amount random(1, 100)
BEGIN;
SELECT id FROM bare_accounts WHERE id IN (:a, :b) ORDER BY id FOR UPDATE;
UPDATE bare_accounts SET balance = balance - :amount WHERE id = :a;
UPDATE bare_accounts SET balance = balance + :amount WHERE id = :b;
INSERT INTO bare_history (account_id, amount, created_at) VALUES (:a, 0 - :amount, now());
INSERT INTO bare_history (account_id, amount, created_at) VALUES (:b, :amount, now());
COMMIT;
