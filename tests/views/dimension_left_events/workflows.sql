-- What is known of a workflow: who runs it, how many runs of it may go on at once, and whether anybody is woken for it.
CREATE EXTERNAL TABLE workflows (workflow VARCHAR NOT NULL, team VARCHAR, slots BIGINT, wakes BOOLEAN)
STORED AS CSV LOCATION 'workflows.csv' OPTIONS ('format.has_header' 'true')
