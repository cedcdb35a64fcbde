-- A component that reports no health, window after window.
--
-- severity: critical
-- for: 60s
-- summary: {component} is unhealthy
-- description: {component} has reported a health of 0 for at least a minute.
SELECT component,
       health AS value
FROM component_health_10s
WHERE health <= 0;
