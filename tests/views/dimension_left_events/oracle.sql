-- What the table says, once more by hand: backup, adhoc-1 and adhoc-2 are not in it.
CREATE VIEW runs_by_team_2m AS
WITH rows AS (SELECT *, MAP {'nightly-etl': 'data', 'train-model': 'ml', 'release': 'platform'}[subject] AS team,
                     MAP {'nightly-etl': true, 'train-model': false, 'release': true}[subject] AS wakes,
                     MAP {'nightly-etl': 4, 'train-model': 2, 'release': 1}[subject] AS slots
              FROM windowed('events', '2 minutes', '2 minutes'))
SELECT window_start, window_end, team, wakes, count(*) AS n, count(slots) AS known, sum(slots) AS slots,
       how_many(outcome = 'failure' AND wakes) AS woken
FROM rows
GROUP BY ALL;
