-- What each service promises: how fast, and how important it is.
CREATE EXTERNAL TABLE objectives (service VARCHAR NOT NULL, slo_seconds DOUBLE, tier INT)
STORED AS CSV LOCATION 'objectives.csv' OPTIONS ('format.has_header' 'true')
