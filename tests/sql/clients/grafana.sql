-- What Grafana's PostgreSQL data source asks: its probes, the query editor's lists, and the macros as it expands them.
-- has: 1
SELECT 1;
-- has: 1600
SELECT current_setting('server_version_num')::int/100 as version;
SELECT extversion FROM pg_extension WHERE extname = 'timescaledb';
-- has: service_latency_1m
SELECT
  CASE WHEN
      quote_ident(table_schema) IN (
      SELECT
        CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
      FROM
        generate_series(
          array_lower(string_to_array(current_setting('search_path'),','),1),
          array_upper(string_to_array(current_setting('search_path'),','),1)
        ) as i,
        string_to_array(current_setting('search_path'),',') s
      )
  THEN quote_ident(table_name)
  ELSE quote_ident(table_schema) || '.' || quote_ident(table_name)
  END AS "table"
FROM information_schema.tables
WHERE quote_ident(table_schema) NOT IN ('information_schema',
                         'pg_catalog',
                         '_timescaledb_cache',
                         '_timescaledb_catalog',
                         '_timescaledb_internal',
                         '_timescaledb_config',
                         'timescaledb_information',
                         'timescaledb_experimental')
ORDER BY CASE WHEN
      quote_ident(table_schema) IN (
      SELECT
        CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
      FROM
        generate_series(
          array_lower(string_to_array(current_setting('search_path'),','),1),
          array_upper(string_to_array(current_setting('search_path'),','),1)
        ) as i,
        string_to_array(current_setting('search_path'),',') s
      ) THEN 0 ELSE 1 END, 1;
-- has: value
SELECT quote_ident(column_name) AS "column", data_type AS "type"
FROM information_schema.columns
WHERE quote_ident(table_name) = 'metrics' OR table_name = 'metrics';
-- $__timeFilter(ts), $__timeGroupAlias(ts, '5m')
-- has: queue_depth
SELECT floor(extract(epoch from ts)/300)*300 AS "time", name AS metric, avg(value) AS "value"
FROM metrics
WHERE ts BETWEEN '2026-01-05T08:00:00Z' AND '2026-01-05T10:00:00Z'
GROUP BY 1, 2 ORDER BY 1, 2;
-- The same with TimescaleDB switched on
-- has: queue_depth
SELECT time_bucket('300.000s', ts) AS "time", name AS metric, avg(value) AS "value"
FROM metrics
WHERE ts BETWEEN '2026-01-05T08:00:00Z' AND '2026-01-05T10:00:00Z'
GROUP BY 1, 2 ORDER BY 1, 2;
-- $__time(ts), $__unixEpochFilter(…), $__timeFrom(), $__timeTo()
-- has: queue_depth
SELECT ts AS "time", name, value FROM metrics
WHERE name = 'queue_depth' AND extract(epoch from ts) >= 1767600000 AND extract(epoch from ts) <= 1767700000
  AND ts >= '2026-01-05T08:00:00Z' AND ts <= '2026-01-05T10:00:00Z'
ORDER BY 1 LIMIT 5;
-- Template variables
-- has: queue_depth
SELECT DISTINCT name FROM metrics ORDER BY 1;
